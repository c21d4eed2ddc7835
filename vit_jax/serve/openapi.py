"""The description of the HTTP interface, in OpenAPI 3.1."""

import importlib.resources
from typing import Any

import jinja2

from vit_jax.serve.served import Served
from vit_jax.serve.uploads import Limits

VERSION = "1"


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _fault(about: str) -> dict[str, Any]:
    return {"description": about, "content": _json({"$ref": "#/components/schemas/Fault"})}


def _text(kind: str, about: str) -> dict[str, Any]:
    return {"200": {"description": about, "content": {kind: {"schema": {"type": "string"}}}}}


def describe(served: Served, limits: Limits) -> dict[str, Any]:
    """The document that `GET /openapi.json` answers with."""
    return {
        "openapi": "3.1.0",
        "info": {"title": f"vit_jax: {served.name}", "version": VERSION},
        "paths": {
            "/predict": {"post": _predict(served, limits)},
            "/healthz": {
                "get": {
                    "summary": "Whether the server is ready",
                    "responses": {"200": {"description": "It is ready", "content": _json(HEALTH)}},
                }
            },
            "/metrics": {"get": {"summary": "Counters for Prometheus", "responses": _text("text/plain", "Metrics")}},
            "/docs": {"get": {"summary": "This description as a page", "responses": _text("text/html", "The page")}},
            "/": {"get": {"summary": "A page to try it", "responses": _text("text/html", "The page")}},
        },
        "components": {"schemas": {"Answer": ANSWER, "Fault": FAULT}},
    }


def as_page(description: dict[str, Any]) -> str:
    """The same for people, in HTML that fetches nothing."""
    template = importlib.resources.files("vit_jax.serve").joinpath("docs.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True).from_string(template).render(description)


def _predict(served: Served, limits: Limits) -> dict[str, Any]:
    form = {
        "type": "object",
        "required": ["images"],
        "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
    }
    parameters = [
        {"name": "top", "in": "query", "description": "classes to name", "schema": {"type": "integer", "minimum": 1}}
    ]
    if served.methods:
        methods = {"type": "string", "enum": list(served.methods)}
        classes = {"type": "string", "minLength": 1}
        about = f"how to show where the model looked; then at most {limits.explained} images"
        parameters += [
            {"name": "explain", "in": "query", "description": about, "schema": methods},
            {"name": "target", "in": "query", "description": "the class that is explained", "schema": classes},
        ]
    images = {
        "type": "array",
        "minItems": 1,
        "maxItems": limits.images,
        "items": {"type": "string", "contentEncoding": "base64"},
    }
    body = {"type": "object", "required": ["images"], "properties": {"images": images}}
    return {
        "summary": "The classes of images",
        "description": f"At most {limits.images} images, {limits.bytes:,} bytes, {limits.pixels:,} pixels each.",
        "parameters": parameters,
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}, **_json(body)}},
        "responses": {
            "200": {"description": "In the order of the images", "content": _json({"$ref": ANSWER_PATH})},
            "400": _fault("The body or the query is not as described"),
            "408": _fault(f"The body took longer than {limits.seconds:g} seconds"),
            "413": _fault("Too many bytes or pixels"),
            "415": _fault("Neither a form nor JSON"),
            "422": _fault("No image, too many, too many to explain, or one that cannot be read"),
            "429": _fault("Too many images wait, or uploads are under way; try again"),
        },
    }


ANSWER_PATH = "#/components/schemas/Answer"
FAULT = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
HEALTH = {
    "type": "object",
    "required": ["status", "model"],
    "properties": {"status": {"const": "ok"}, "model": {"type": "string"}},
}
CLASS = {
    "type": "object",
    "required": ["class", "probability"],
    "properties": {"class": {"type": "string"}, "probability": {"type": "number", "minimum": 0, "maximum": 1}},
}
PREDICTION = {
    "type": "object",
    "required": ["name", "top"],
    "properties": {
        "name": {"type": "string"},
        "top": {"type": "array", "items": CLASS, "minItems": 1},
        "view": {"type": "string", "description": "the image as the model sees it, a data: address"},
        "heat": {"type": "string", "description": "where it looked: a grey image of that size, a data: address"},
    },
}
ANSWER = {
    "type": "object",
    "required": ["predictions"],
    "properties": {"predictions": {"type": "array", "items": PREDICTION}},
}
