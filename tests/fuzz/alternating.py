"""A method that takes every other step by Dopri5 and by Rodas5P: what can go wrong at a change of methods, does so."""

from torch_ACA import methods
from torch_ACA.rosenbrock_tableaus import RODAS5P
from torch_ACA.steppers.switching import Switching
from torch_ACA.switching import SwitchingMethod
from torch_ACA.tableaus import TABLEAUS

EXPLICIT, STIFF = "Dopri5", "Rodas5P"


class _Stepper(Switching):
    def accepted(self):
        self.turn_to(self.method.stiff if self.current is self.method.explicit else self.method.explicit)


class Alternating(SwitchingMethod):
    def stepper(self, vector_field, *, keep_graphs=False, time_grad=False):
        return _Stepper(self, vector_field, keep_graphs=keep_graphs, time_grad=time_grad)


ALTERNATING = Alternating("alternating", TABLEAUS[EXPLICIT], RODAS5P)
methods[ALTERNATING.name] = ALTERNATING
