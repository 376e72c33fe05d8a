"""What the tests use of pytest-twisted, which has no types of its own."""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

_T = TypeVar("_T")
_Test = TypeVar("_Test", bound=Callable[..., Coroutine[Any, Any, None]])

def ensureDeferred(test: _Test) -> _Test: ...
def blockon(waited_for: Deferred[_T]) -> _T: ...
