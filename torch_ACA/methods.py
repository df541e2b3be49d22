"""The methods by name; users' own can be added."""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from .rosenbrock_tableaus import RODAS5P
from .steppers.adams import ADAMS
from .steppers.alf import ALF
from .steppers.base import Method, no_method
from .switching import AUTO
from .tableaus import TABLEAUS


class Methods(MutableMapping):
    """`Method`s by name, in any case. A name that differs in case alone from another one may stand for another method
    (RK4 is the classic method, rk4 the 3/8 rule)."""

    def __init__(self, methods: Mapping[str, Any]) -> None:
        self._methods = dict(methods)
        self.version = 0  # grows when a name comes to stand for another method

    def __getitem__(self, name: str) -> Method:
        if name in self._methods:
            return self._methods[name]
        if isinstance(name, str):
            for known, method in self._methods.items():
                if known.lower() == name.lower():
                    return method
        raise KeyError(name)

    def __setitem__(self, name: str, method: Any) -> None:
        """Make a method known by a name, which `solve(method=name)` then takes.

        :raises TypeError: it is no `Method`
        """
        if not isinstance(method, Method):
            raise TypeError(f"method {no_method(method)}")
        self._methods[name] = method
        self.version += 1

    def __delitem__(self, name: str) -> None:
        del self._methods[name]
        self.version += 1

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)

    def __repr__(self) -> str:
        return f"Methods({', '.join(self)})"


methods = Methods({**TABLEAUS, **ADAMS, RODAS5P.name: RODAS5P, AUTO.name: AUTO, ALF.name: ALF})
METHODS = tuple(methods)  # those that come with the package
FIXED_STEP_METHODS = tuple(name for name, method in methods.items() if not method.adaptive)
