"""`launch/gke_jobset.yaml` against the fields and types of JobSet v1alpha2, batch/v1 Job and the pod that it uses.

From kubernetes-sigs/jobset, hack/python-sdk/swagger.json, and the Kubernetes 1.33 API.
"""

import re
from string import Template
from typing import Any

import yaml

from tests.conftest import REPOSITORY

FILE = REPOSITORY / "launch" / "gke_jobset.yaml"
VALUES = {
    "NAME": "vit",
    "IMAGE": "registry/vit_jax:1",
    "BUCKET": "my-runs",
    "ACCELERATOR": "tpu-v5-lite-podslice",
    "TOPOLOGY": "4x4",
    "WORKERS": "4",
    "CHIPS": "4",
    "ARGUMENTS": '"--config", "configs/cifar100.py:vit", "--workdir", "/runs/cifar100"',
}
STRINGS = {"*": str}
RULE = {"name!": str, "action!": str, "onJobFailureReasons": [str], "targetReplicatedJobs": [str]}
EXIT_CODES = {"containerName": str, "operator!": str, "values!": [int]}
CONTAINER = {
    "name!": str,
    "image!": str,
    "command": [str],
    "args": [str],
    "resources": {"limits": {"*": (int, str)}, "requests": {"*": (int, str)}},
    "volumeMounts": [{"name!": str, "mountPath!": str, "readOnly": bool}],
}
POD = {
    "restartPolicy": str,
    "serviceAccountName": str,
    "terminationGracePeriodSeconds": int,
    "nodeSelector": STRINGS,
    "containers!": [CONTAINER],
    "volumes": [{"name!": str, "csi": {"driver!": str, "readOnly": bool, "volumeAttributes": STRINGS}}],
}
METADATA = {"name": str, "annotations": STRINGS, "labels": STRINGS}
JOB = {
    "parallelism": int,
    "completions": int,
    "completionMode": str,
    "backoffLimit": int,
    "podFailurePolicy": {"rules!": [{"action!": str, "onExitCodes": EXIT_CODES}]},
    "template!": {"metadata": METADATA, "spec!": POD},
}
JOBSET = {
    "apiVersion!": str,
    "kind!": str,
    "metadata!": METADATA,
    "spec!": {
        "failurePolicy": {"maxRestarts": int, "restartStrategy": str, "rules": [RULE]},
        "network": {"enableDNSHostnames": bool, "publishNotReadyAddresses": bool, "subdomain": str},
        "replicatedJobs": [{"name!": str, "replicas": int, "template!": {"metadata": METADATA, "spec!": JOB}}],
        "suspend": bool,
        "ttlSecondsAfterFinished": int,
    },
}


def faults(value: Any, schema: Any, path: str = "") -> list[str]:
    """What a value has, or lacks, against a schema: `key!` is required, `*` stands for any key."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{path} is no mapping"]
        known = {key.rstrip("!"): part for key, part in schema.items()}
        missing = [f"{path}.{key[:-1]} is missing" for key in schema if key.endswith("!") and key[:-1] not in value]
        unknown = [f"{path}.{key} is unknown" for key in value if key not in known and "*" not in known]
        parts = [(key, part, known.get(key, known.get("*"))) for key, part in value.items()]
        return missing + unknown + [f for key, part, kind in parts if kind for f in faults(part, kind, f"{path}.{key}")]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{path} is no list"]
        return [f for i, part in enumerate(value) for f in faults(part, schema[0], f"{path}[{i}]")]
    is_right = isinstance(value, schema) and (schema is bool or not isinstance(value, bool))
    return [] if is_right else [f"{path}={value!r} is not {schema}"]


def filled() -> dict[str, Any]:
    text = "".join(line for line in FILE.read_text().splitlines(keepends=True) if not line.startswith("#"))
    return yaml.safe_load(Template(text).substitute(VALUES))


def test_it_is_a_jobset():
    found = filled()
    assert faults(found, JOBSET) == []
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")


def test_the_schema_finds_faults():
    found = filled()
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["parallelism"] = "4"
    job["template"]["spec"]["container"] = job["template"]["spec"].pop("containers")
    path = ".spec.replicatedJobs[0].template.spec"
    assert faults(found, JOBSET) == [
        f"{path}.parallelism='4' is not <class 'int'>",
        f"{path}.template.spec.containers is missing",
        f"{path}.template.spec.container is unknown",
    ]


def test_every_placeholder_is_documented_and_no_other():
    text = FILE.read_text()
    comments, body = (
        "".join(line for line in text.splitlines(keepends=True) if line.startswith("#") == wanted)
        for wanted in (True, False)
    )
    documented = set(re.findall(r"^# \$\{(\w+)\}", comments, re.MULTILINE))
    assert documented == set(re.findall(r"\$\{(\w+)\}", body)) == set(VALUES)


def test_the_job_is_one_process_for_each_machine_of_the_slice():
    job = filled()["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4 and job["completionMode"] == "Indexed"
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never", "the JobSet restarts all workers together"
    (container,) = pod["containers"]
    assert container["args"][:2] == ["--config", "configs/cifar100.py:vit"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]
