"""Forms with uploads, such as the audio of `/v1/audio/transcriptions`, for models that are passed through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request as HTTPRequest

from motes.gateway.admission import Caller
from motes.gateway.errors import BusyError, RefusedError

MEDIA_TYPE = "multipart/form-data"
MAX_FILES, MAX_FIELDS, MAX_FIELD_BYTES = 16, 64, 100_000
MAX_FORMS, MAX_FORMS_OF_ONE = 64, 16
"""Maximum number of forms that are read or passed on at the same time, and of one caller: their files are on the disk.
"""


def is_form(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == MEDIA_TYPE


async def read_form(http: HTTPRequest, *, has_keys: bool, origins: Collection[str]) -> FormData:
    """The form in the body of a request. `http.close()` removes its files.

    Args:
        has_keys: whether the gateway has keys, so that this request has one.
        origins: of web pages that may use the gateway.

    Raises:
        RefusedError: it comes from a page that may not send it. A page of another origin can send a form without
            asking; only a key tells it apart from the user.
        HTTPException: it is not a form, or has too many or too long fields.
    """
    origin = http.headers.get("origin")
    if not has_keys and origin is not None and origin not in origins:
        raise RefusedError("pages of this origin may not send forms: add it to `cors`", status=403, code="origin")
    return await http.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)


class Forms:
    """Counts the forms that are read or passed on."""

    def __init__(self) -> None:
        self._by_caller: Counter[Caller] = Counter()

    @contextmanager
    def counted(self, caller: Caller) -> Iterator[None]:
        """Count a form of this caller during the context. Raises BusyError if there are too many."""
        most = min(MAX_FORMS_OF_ONE, caller.concurrency)
        if self._by_caller.total() >= MAX_FORMS or self._by_caller[caller] >= most:
            raise BusyError("too many uploads at once", 1.0)
        self._by_caller[caller] += 1
        try:
            yield
        finally:
            self._by_caller[caller] -= 1


def parts(form: FormData, model: str) -> list[tuple[str, tuple[Any, ...]]]:
    """The parts of a form in order, as httpx takes them, with this name of the model."""
    return [(name, _part(value if name != "model" else model)) for name, value in form.multi_items()]


def _part(value: UploadFile | str) -> tuple[Any, ...]:
    if isinstance(value, str):
        return (None, value)
    return (value.filename, value.file, value.content_type or "application/octet-stream")
