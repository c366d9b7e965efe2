"""YAML that somebody wrote, read with one kind of error in one line, whatever PyYAML raises.

params.yaml has a reader of its own (params.py), which also refuses a key that stands there twice.
"""

from __future__ import annotations

from typing import Any

import yaml

MOST = 400  # letters of a value or a reason that a message repeats


class NotYaml(ValueError):
    """Why a text cannot be read."""


def parsed(text: str | bytes) -> Any:
    try:
        return yaml.safe_load(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except RecursionError:
        raise NotYaml("is nested too deeply to be read") from None
    except UnicodeDecodeError as error:
        raise NotYaml(f"is not text in UTF-8 ({error.reason} at byte {error.start})") from None
    except Exception as error:  # beside YAMLError: ValueError of a date or of a huge number, and others
        raise NotYaml(f"is not YAML: {short(' '.join(str(error).split()))}") from None


def short(text: str) -> str:
    return text if len(text) <= MOST else f"{text[:MOST]}..."
