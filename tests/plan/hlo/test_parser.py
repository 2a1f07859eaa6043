import pytest

from var_jax.plan.hlo.parser import array_bytes, group_size, main_memory_bytes


@pytest.mark.parametrize(
    "attributes, size",
    [
        ("replica_groups={{0,1,2},{3,4,5}}, x", 3),
        ("replica_groups=[2,8]<=[16]", 8),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['a'=4,'b'=16] {'b'}", 16),
        ("replica_groups=mesh['a'=4,'b'=16] {'a','b'}", 64),
        ("replica_groups=mesh['a'=4,'b'=16] {'b':(1)4}", 4),
        ("replica_groups={}", 32),
        ("source_target_pairs={{0,1},{1,0}}", 2),
        ("source_target_pairs={{0,0},{1,1}}", 1),
    ],
)
def test_group_sizes(attributes, size):
    assert group_size(attributes, 32) == size


def test_types():
    text = "(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, f32[4]{0}, pred[8], s4[4], f8e4m3fn[3])"
    assert array_bytes(text) == 12 + 16 + 8 + 2 + 3
    assert main_memory_bytes(text) == 16 + 8 + 2 + 3
