"""Bodies of requests: JSON or a form, with an upload or without, as the same fields."""

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from fastvideo.entrypoints.serve.errors import ApiError
from fastvideo.entrypoints.serve.requests import REFERENCES
from fastvideo.utils import nearest

MAX_FIELDS = 64
MAX_PART = 1 << 40
"""No limit of its own for a field: a data URL may be most of a body, and that has a limit."""
STRUCTURED = ("loras", *REFERENCES)
NESTED = re.compile(r"(?P<base>[^\[\]]+)(?P<list>\[\])?(?:\[(?P<key>[^\[\]]+)\])?")
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")

M = TypeVar("M", bound=BaseModel)
RULES = {
    ("string_too_short", "prompt"): "is empty; say what to show",
    ("string_pattern_mismatch", "size"): "must be WIDTHxHEIGHT, such as 832x480",
}
"""What is said in place of pydantic's words, by the kind of error and the field."""


@dataclass(frozen=True)
class Body:
    """What a client sent."""

    fields: dict[str, Any]
    uploads: dict[str, bytes] = field(default_factory=dict)
    """Files, by the field; what a client calls them is not kept."""

    @property
    def digest(self) -> str:
        """Of everything in it."""
        digest = hashlib.sha256(json.dumps(self.fields, sort_keys=True).encode())
        for name, data in sorted(self.uploads.items()):
            digest.update(f"\0{name}\0{len(data)}\0".encode() + data)
        return digest.hexdigest()


async def read_body(request: Request, files: Collection[str] = ()) -> Body:
    """The body of `request`; `files` are the fields that may be uploads.

    Raises:
        ApiError: 400; it is neither JSON nor a form, or not well formed.
    """
    kind = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if kind in FORMS:
        return await _read_form(request, files)
    if kind != "application/json":
        raise ApiError(400, f"Content-Type: {kind!r} must be application/json or multipart/form-data",
                       param="Content-Type", code="unsupported_content_type")  # fmt: skip
    try:
        fields = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not valid JSON", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return Body(fields)


async def _read_form(request: Request, files: Collection[str]) -> Body:
    fields: dict[str, list[str]] = {}
    uploads: dict[str, bytes] = {}
    async with request.form(max_files=len(files) + 1, max_fields=MAX_FIELDS, max_part_size=MAX_PART) as form:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                fields.setdefault(name, []).append(value)
            elif name not in files:
                raise ApiError(400, f"{name}: is not a file", param=name, code="invalid_value")
            elif name in uploads:
                raise _twice(name)
            else:
                uploads[name] = await value.read()
    nested = unflattened(fields)
    for name in uploads:
        if name in nested:
            raise _twice(name)
    return Body({name: _structured(name, value) for name, value in nested.items()}, uploads)


def _twice(name: str) -> ApiError:
    return ApiError(400, f"{name}: is given twice", param=name, code="invalid_value")


def unflattened(fields: dict[str, list[str]]) -> dict[str, Any]:
    """Fields of a form with lists and objects in brackets, as the `openai` package writes them.

    `video[id]` is a field of the object `video`, `names[]` an item of the list `names`, and `loras[][name]` a field of
    an item of the list of objects `loras`: of the n-th one, where it is the n-th of that name.

    Raises:
        ApiError: 400; a field is given twice, or in two ways, or objects of a list lack a field that others have.
    """
    made: dict[str, Any] = {}
    for name, values in fields.items():
        found = NESTED.fullmatch(name)
        base, a_list, key = (found["base"], found["list"], found["key"]) if found else (name, None, None)
        if (base in made and key is None) or (len(values) > 1 and not a_list):
            raise _twice(base)
        if key is None:
            made[base] = values if a_list else values[0]
            continue
        kind: type[Any] = list if a_list else dict
        whole = made.setdefault(base, [{} for _ in values] if a_list else {})
        matches = isinstance(whole, kind) and (
            kind is dict or (len(whole) == len(values) and isinstance(whole[0], dict))
        )
        if not matches:
            raise ApiError(400, f"{base}: is not well formed; give it as JSON", param=base, code="invalid_value")
        for place, value in zip(whole if a_list else [whole], values, strict=True):
            place[key] = value
    return made


def _structured(name: str, value: Any) -> Any:
    """A field of a form; lists and objects may be JSON there."""
    if isinstance(value, str) and name in STRUCTURED and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def parsed(model: type[M], fields: dict[str, Any]) -> M:
    """`fields` as a `model`.

    Raises:
        ApiError: 400, with the field.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise of_validation(error.errors(), tuple(model.model_fields)) from None


def of_validation(errors: Any, known: tuple[str, ...] = ()) -> ApiError:
    """The first of pydantic's errors, of a body with the `known` fields."""
    first = errors[0]
    path = [str(part) for part in first["loc"]]
    if len(path) > 1 and path[0] in ("body", "query", "path", "header"):  # where FastAPI found it
        del path[0]
    name = path[0] if path else None
    if first["type"] == "extra_forbidden":
        close = nearest(path[0], known) if len(path) == 1 else None
        hint = f"; did you mean {close!r}?" if close else ""
        return ApiError(400, f"{'.'.join(path)}: no such field{hint}", param=name, code="unknown_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"{name}: is missing", param=name, code="missing_required_parameter")
    rule = RULES.get((first["type"], name or ""), first["msg"])
    return ApiError(400, f"{'.'.join(path) or 'request'}: {rule}", param=name, code="invalid_value")
