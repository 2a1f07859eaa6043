import pytest

from var_jax.plan.hlo.loops import run_counts
from var_jax.plan.hlo.parser import Program

#: Counts from 1 in steps of 2 while it is below a bound; %inner is called by each round.
PROGRAM = """
%inner (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %double = f32[4]{0} add(%x, %x)
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %y = f32[4]{0} get-tuple-element(%p), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %z = f32[4]{0} call(%y), to_apply=%inner
  ROOT %out = (s32[], f32[4]{0}) tuple(%next, %z)
}

%condition (q: (s32[], f32[4])) -> pred[] {
  %q = (s32[], f32[4]{0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %bound = s32[] constant(8)
  ROOT %less = pred[] compare(%j, %bound), direction=LT
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %one = s32[] constant(1)
  %start = (s32[], f32[4]{0}) tuple(%one, %a)
  %loop = (s32[], f32[4]{0}) while(%start), condition=%condition, body=%body
  ROOT %end = f32[4]{0} get-tuple-element(%loop), index=1
}
"""


@pytest.mark.parametrize(
    "known, times", [("", 4), (', backend_config={"known_trip_count":{"n":"5"}}', 5)]
)
def test_trips_are_read_or_counted(known, times):
    program = Program(PROGRAM.replace("body=%body", f"body=%body{known}"))
    assert program.entry == "main"
    assert run_counts(program) == {"main": 1, "body": times, "inner": times}
