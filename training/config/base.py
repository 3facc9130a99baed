"""What all parts of the config share: validation at every change, and plain values."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

NOT_SEARCHABLE: dict[str, Any] = {"searchable": False}


class ConfigPart(BaseModel):
    """Fields that are validated on construction and on every assignment."""

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign and validate; a refused value leaves the config as it was."""
        if name not in type(self).model_fields:
            super().__setattr__(name, value)
            return
        before = dict(self.__dict__)
        before_set = set(self.model_fields_set)
        try:
            super().__setattr__(name, value)
        except ValueError:
            self.__dict__.update(before)
            object.__setattr__(self, "__pydantic_fields_set__", before_set)
            raise

    @classmethod
    def searchable_fields(cls) -> list[str]:
        """Fields that say how a network is trained: no paths, no machine, no data."""
        return [
            name
            for name, field in cls.model_fields.items()
            if not isinstance(field.json_schema_extra, dict)
            or field.json_schema_extra.get("searchable") is not False
        ]

    def flat(self) -> dict[str, Any]:
        """The config as plain values (JSON and YAML types), one entry a field."""
        return self.model_dump(mode="json")
