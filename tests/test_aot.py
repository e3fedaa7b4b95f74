"""What is read from a compiled program is what was put into it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from supmim import sharding
from supmim.errors import ConfigError, DeviceError
from supmim.planning import h200, hlo


def compiled(fn, mesh, *arguments, out=None):
    """fn compiled for (shape, dtype, spec) arguments on a mesh."""
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
        for shape, dtype, spec in arguments
    ]
    with jax.set_mesh(mesh):
        where = NamedSharding(mesh, PartitionSpec(*out)) if out is not None else None
        program = jax.jit(fn, out_shardings=where).lower(*shapes).compile()
    return hlo.Program(program.as_text())


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(data=4, fsdp=2, tensor=1)


def test_a_sum_over_the_batch_is_one_all_reduce_of_the_gradient(mesh):
    program = compiled(
        jax.grad(lambda w, x: ((x @ w) ** 2).sum()), mesh,
        ((64, 32), jnp.float32, ()), ((16, 64), jnp.float32, (("data", "fsdp"),)), out=(),
    )  # fmt: skip
    assert program.collectives() == [hlo.Collective("all-reduce", "f32", 64 * 32 * 4, 8, 1)]


def test_a_split_weight_is_gathered_over_its_own_axis(mesh):
    program = compiled(
        lambda w: w * 2, mesh, ((64, 32), jnp.float32, ("fsdp",)), out=(),
    )  # fmt: skip
    assert program.collectives() == [hlo.Collective("all-gather", "f32", 64 * 32 * 4, 2, 1)]


def test_a_transposed_split_is_an_all_to_all(mesh):
    program = compiled(
        lambda x: x + 1, mesh, ((16, 64), jnp.bfloat16, ("data",)), out=(None, "data")
    )
    (found,) = program.collectives()
    assert (found.kind, found.devices, found.times) == ("all-to-all", 4, 1)


def test_a_loop_over_a_stack_reads_and_writes_one_slice_a_turn(mesh):
    def scale(w, x):
        return jax.lax.scan(lambda x, w: (jnp.sin(x * w), x), x, w)

    program = compiled(scale, mesh, ((64, 32, 32), jnp.float32, ()), ((32, 32), jnp.float32, ()))
    square = 32 * 32 * 4
    in_loop = [k for k in program.kernels() if k.times == 64 and k.bytes > square]
    assert in_loop and all(k.bytes <= 3 * square + 64 for k in in_loop)


def test_what_a_loop_does_counts_as_often_as_it_turns(mesh):
    def layers(w, x):
        def layer(x, w):
            x = jax.lax.with_sharding_constraint(x, PartitionSpec(("data", "fsdp")))
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, w)[0]

    program = compiled(
        layers, mesh,
        ((5, 32, 32), jnp.float32, (None, "fsdp")),
        ((16, 32), jnp.float32, (("data", "fsdp"),)),
    )  # fmt: skip
    assert program.collectives() == [hlo.Collective("all-gather", "f32", 32 * 32 * 4, 2, 5)]
    (product,) = program.products()
    assert (product.flops, product.times) == (2 * 2 * 32 * 32, 5)
    unstated = program.computations[program.entry]
    for name, one in unstated.items():
        unstated[name] = one._replace(rest=one.rest.replace("known_trip_count", "unknown"))
    assert program.products()[0].times == 5  # read from the loop's condition


def test_kernels_count_what_crosses_their_boundaries():
    one = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    shape = (512, 256)
    program = compiled(
        lambda x, y: jnp.exp(x) * y + jnp.sin(x), one,
        (shape, jnp.float32, ()), (shape, jnp.float32, ()),
    )  # fmt: skip
    (kernel,) = program.kernels()
    assert (kernel.kind, kernel.bytes, kernel.times) == ("elementwise", 3 * 512 * 256 * 4, 1)
    assert program.traffic() == {"elementwise": kernel.bytes, "scratch": 0}


def test_products_are_told_from_the_rest_with_their_dtype_and_flops():
    one = sharding.make_mesh(1, 1, 1, jax.devices()[:1])

    def products(x, y, image, filters):
        y = (x @ y).astype(jnp.float32)
        return y, jax.lax.conv_general_dilated(
            image, filters, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    program = compiled(
        products, one,
        ((64, 32), jnp.float32, ()), ((32, 48), jnp.float32, ()),
        ((2, 8, 8, 3), jnp.float32, ()), ((3, 3, 3, 4), jnp.float32, ()),
    )  # fmt: skip
    flops = sorted(product.flops for product in program.products())
    assert flops == sorted([2.0 * 64 * 32 * 48, 2.0 * 2 * 6 * 6 * 4 * 27])
    assert program.float32_share() == 1.0
    assert program.traffic()["product"] > 0


GPU_TEXT = """\
HloModule step

%inner (p: bf16[8,8]) -> bf16[4,8] {
  %p = bf16[8,8]{1,0} parameter(0)
  ROOT %reduce-scatter.1 = bf16[4,8]{1,0} reduce-scatter(%p), channel_id=3, replica_groups=[4,2]<=[8], dimensions={0}, to_apply=%add
}

ENTRY %main (a: bf16[8,8], b: f32[8,8]) -> bf16[4,8] {
  %a = bf16[8,8]{1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[8,8]{1,0} parameter(1)
  %custom-call.1 = (f32[8,8]{1,0}, s8[1024]{0}) custom-call(%b, /*index=1*/%b), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %dot.1 = bf16[8,8]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %all-gather-start.1 = (bf16[8,8]{1,0}, bf16[64,8]{1,0}) all-gather-start(%a), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %all-gather-done.1 = bf16[64,8]{1,0} all-gather-done(%all-gather-start.1)
  %collective-permute-start.1 = (bf16[8,8]{1,0}, bf16[8,8]{1,0}, u32[], u32[]) collective-permute-start(%a), channel_id=2, source_target_pairs={{0,1},{1,0}}
  %collective-permute-done.1 = bf16[8,8]{1,0} collective-permute-done(%collective-permute-start.1)
  %reduce-scatter-start = ((bf16[8,8]{1,0}), bf16[4,8]{1,0}) async-start(%a), calls=%inner
  ROOT %reduce-scatter-done = bf16[4,8]{1,0} async-done(%reduce-scatter-start)
}
"""  # noqa: E501


def test_asynchronous_collectives_count_once_with_their_payload():
    program = hlo.Program(GPU_TEXT)
    assert program.collectives() == [
        hlo.Collective("all-gather", "bf16", 64 * 8 * 2, 8, 1),
        hlo.Collective("collective-permute", "bf16", 8 * 8 * 2, 2, 1),
        hlo.Collective("reduce-scatter", "bf16", 8 * 8 * 2, 2, 1),
    ]
    kinds = [kernel.kind for kernel in program.kernels()]
    assert kinds == ["product", "product", "collective", "collective", "collective"]
    assert program.float32_share() == 0.5
    assert program.traffic() == {
        "product": 3 * 8 * 8 * 4 + 3 * 8 * 8 * 2,
        "scratch": 1024,
        "collective": (8 + 64) * 16 + 2 * 128 + 128 + 64,
    }


def test_parts_of_one_collective_are_one():
    """A TPU's text has one collective in the fusions that start, carry on and finish it."""
    line = next(line for line in GPU_TEXT.splitlines() if " all-gather-start(" in line)
    again = line.replace("%all-gather-start.1 =", "%all-gather-start.2 =")
    twice = hlo.Program(GPU_TEXT.replace(line, f"{line}\n{again}"))
    assert twice.collectives() == hlo.Program(GPU_TEXT).collectives()
    other = hlo.Program(GPU_TEXT.replace(line, line + "\n" + again.replace("id=1,", "id=9,")))
    assert len(other.collectives()) == len(twice.collectives()) + 1


def test_described_h200s_fill_whole_hosts_or_say_what_is_missing():
    with pytest.raises(ConfigError, match="do not fill hosts"):
        h200.devices(12)
    try:
        found = h200.devices(16)
    except DeviceError as error:
        assert "pip install jax-cuda12-plugin" in str(error)
    else:
        assert np.unique([device.process_index for device in found]).tolist() == [0, 1]
        assert {device.device_kind for device in found} == {"NVIDIA H200"}
