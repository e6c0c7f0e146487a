"""Errors that a user can act on; each message says what was got, what the rule is and how to fix it.

```
ConvLoraError
├── ConfigError        a key or value of the configuration or the command line
│   ├── NoRoomError    one that needs more memory than there is
│   └── OptionError    an option of a method, with its name (adapters.base)
├── DataError          an image, a mask or the layout of a data set
│   └── FileError      a file that cannot be used, with the parts of the message (data.images)
├── WriteError         a result that cannot be written
├── WeightsError       a backbone or adapter file that does not fit
├── TargetError        a method that finds nothing to adapt
├── DisagreementError  a converted model that does not compute what PyTorch does
└── MissingExtraError  an optional dependency that is not installed
```
"""


class ConvLoraError(Exception):
    """Base of all errors that a user can act on; the command line prints it without a traceback."""


class ConfigError(ConvLoraError):
    """A key or value of the configuration is not valid."""


class NoRoomError(ConfigError):
    """Training ran out of memory.

    Args:
        found: what was tried, as a sentence.
        fix: what to do in a run of its own, as sentences.
    """

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(f"{found} {fix}")
        self.found = found


class DataError(ConvLoraError):
    """An image, a mask or the layout of a data set is not valid."""


class WriteError(ConvLoraError):
    """A result cannot be written, so that those that follow could not be either."""


class WeightsError(ConvLoraError):
    """A backbone or adapter file is missing, damaged or does not fit."""


class TargetError(ConvLoraError):
    """A method found no module to adapt."""


class DisagreementError(ConvLoraError):
    """A converted model does not compute what PyTorch does."""


class MissingExtraError(ConvLoraError):
    """An optional dependency is not installed."""

    def __init__(self, feature: str, extra: str, package: str) -> None:
        super().__init__(
            f"{feature} needs the package '{package}', which is not installed.\n"
            f"Install it with: pip install 'convlora[{extra}]'"
        )
