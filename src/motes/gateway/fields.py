"""The types of fields in the bodies of requests, whichever API they belong to."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    ValidationError,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema


class AcceptOnly:
    """Restricts a field that the gateway does not support to null and to `values`, which request nothing.

    Args:
        may_be_ignored: whether a gateway that is not strict ignores other values: they change no more than how an
            answer is drawn.
    """

    def __init__(self, *values: Any, may_be_ignored: bool = False) -> None:
        self._values, self.may_be_ignored = values, may_be_ignored

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [None, *self._values]}

    def accepts(self, value: Any) -> bool:
        # In Python 0 == False, in JSON not; 0 and 0.0 are the same number in both.
        same = (value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in self._values)
        return value is None or any(same)

    def _check(self, value: Any) -> Any:
        if not self.accepts(value):
            raise ValueError("this is not supported: leave it out")
        return value


class ExpectedInput:
    """Gives a field of a union type one error message, instead of one for each member of the union."""

    def __init__(self, expected: str) -> None:
        self._expected = expected

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        error = {"custom_error_type": "none_of_them", "custom_error_message": f"Input should be {self._expected}"}
        return {**handler(source), **error}


def whole_float_as_integer(value: Any) -> Any:
    """A float without a fraction as an integer. Other values stay as they are."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Flag = Annotated[bool, Strict()]  # neither 1 nor "yes"
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Whole = Annotated[int, Strict(), BeforeValidator(whole_float_as_integer)]
Unsupported = Annotated[Any, AcceptOnly()]
UnsupportedFlag = Annotated[Any, AcceptOnly(False)]
Ignorable = Annotated[Any, AcceptOnly(may_be_ignored=True)]
IgnorableFlag = Annotated[Any, AcceptOnly(False, may_be_ignored=True)]
IgnorableNumber = Annotated[Any, AcceptOnly(0.0, may_be_ignored=True)]
IgnorableList = Annotated[Any, AcceptOnly([], may_be_ignored=True)]
Positive = Annotated[int, Strict(), Field(ge=1, le=2**31 - 1), BeforeValidator(whole_float_as_integer)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


def fault_in(field: str, reason: str) -> ValidationError:
    """The error of a validator of an object that finds a fault in one of its fields, such as "tools.0.name"."""
    error = PydanticCustomError("field_fault", "{reason}", {"reason": reason})
    return ValidationError.from_exception_data("", [InitErrorDetails(type=error, loc=(*field.split("."),), input=None)])
