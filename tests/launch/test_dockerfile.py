"""The Dockerfile of the server: what linters ask of one (hadolint is no Python package), and that its paths exist."""

import json
import re
import shlex

from tests.conftest import REPOSITORY
from vit_jax.serve.command import _parser

FILE = REPOSITORY / "launch" / "Dockerfile"
KNOWN = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", FILE.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def of(kind: str) -> list[str]:
    return [value for name, value in instructions() if name == kind]


def test_it_is_one_that_docker_reads():
    found = instructions()
    assert {name for name, _ in found} == KNOWN and found[0][0] == "FROM"
    for image in of("FROM"):
        assert re.fullmatch(r"python:\d+\.\d+-slim( AS \w+)?", image), f"{image!r} names no version"
    for kind in ("ENTRYPOINT", "CMD"):  # a shell would keep SIGTERM to itself
        (words,) = of(kind)
        assert all(isinstance(word, str) for word in json.loads(words))
    kind, _, words = of("HEALTHCHECK")[0].partition(" CMD ")
    assert kind.startswith("--start-period=") and compile(json.loads(words)[2], "health", "exec")


def test_it_follows_the_rules_of_linters():
    names = [name for name, _ in instructions()]
    assert of("USER")[-1] not in ("root", "0") and names.index("USER") > len(names) - 1 - names[::-1].index("FROM")
    assert all("--no-cache-dir" in command for command in of("RUN") if "pip install" in command)
    assert all("--constraint constraints.txt" in command for command in of("RUN") if "pip install" in command)
    assert not any(word in command for command in of("RUN") for word in ("sudo", "curl", "apt-get upgrade", ":latest"))
    assert all(path.startswith("/") for path in of("WORKDIR"))


def test_what_it_copies_is_there_and_its_flags_are_known():
    for command in of("COPY"):
        if not command.startswith("--from"):
            for path in shlex.split(command)[:-1]:
                assert (REPOSITORY / path).exists(), path
    flags = _parser().parse_args(json.loads(of("CMD")[0]))
    assert (flags.host, str(flags.port)) == ("0.0.0.0", of("EXPOSE")[0])
    assert json.loads(of("ENTRYPOINT")[0]) == ["vit_jax", "serve"]
