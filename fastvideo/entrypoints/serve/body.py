"""Bodies of requests: JSON or a form, with an upload or without, as the same fields."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from fastvideo.entrypoints.serve.errors import ApiError

MAX_FIELDS = 64
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Body:
    """What a client sent."""

    fields: dict[str, Any]
    upload: bytes | None = None
    """The file `input_reference`."""
    filename: str = ""
    """What the client calls it; never used as a path."""

    @property
    def digest(self) -> str:
        """Of everything in it."""
        text = json.dumps(self.fields, sort_keys=True).encode()
        return hashlib.sha256(text + b"\0" + (self.upload or b"")).hexdigest()


async def read_body(request: Request, files: tuple[str, ...] = ("input_reference",)) -> Body:
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


async def _read_form(request: Request, files: tuple[str, ...]) -> Body:
    fields: dict[str, Any] = {}
    upload, filename = None, ""
    async with request.form(max_files=1, max_fields=MAX_FIELDS) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in files:
                    raise ApiError(400, f"{name}: is not a file", param=name, code="invalid_value")
                upload, filename = await value.read(), value.filename or ""
            elif name in fields:
                raise ApiError(400, f"{name}: is given twice", param=name, code="invalid_value")
            else:
                fields[name] = value
    return Body({name: _structured(name, value) for name, value in fields.items()}, upload, filename)


def _structured(name: str, value: str) -> Any:
    """A field of a form; lists and objects are JSON there."""
    if name in ("loras", "input_reference") and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
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
        raise of_validation(error.errors()) from None


def of_validation(errors: Any) -> ApiError:
    """The first of pydantic's errors."""
    first = errors[0]
    path = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    name = path[0] if path else None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{name}: no such field", param=name, code="unknown_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"{name}: is missing", param=name, code="missing_required_parameter")
    return ApiError(400, f"{'.'.join(path) or 'request'}: {first['msg']}", param=name, code="invalid_value")
