"""The native operators: which path a run would take, and whether they compute what PyTorch does."""

from __future__ import annotations

from collections.abc import Iterator

from stylegan_dist.doctor.record import Check, Finding, Options, error, ok, warning


def _paths(_: Options) -> Iterator[Finding]:
    from stylegan_dist.doctor.gradients import device_types
    from stylegan_dist.ops import build, native

    yield ok("compilers", f"C++: {build.compiler() or 'none'}; nvcc: {build.nvcc() or 'none'}")
    for device in device_types():
        path, name = native.path(device), f"operators, {device}"
        if path.name == "fused" or device not in native.AUTO:
            possible = native.path(device, "fused")
            more = f"; with ops.path=fused: {possible}" if path.name != "fused" else ""
            yield ok(name, f"{path}{more}")
        else:
            yield warning(name, f"{path}: slower", "correct what the reason names; docs/ops.md says what is needed")


def _gradients(_: Options) -> Iterator[Finding]:
    from stylegan_dist.doctor.gradients import check_operators, device_types
    from stylegan_dist.ops import native

    with native.not_compiling():
        served = native.native().devices
    for device in device_types():
        if device not in served:
            continue
        compared = list(check_operators(device))
        what, difference, limit = max(compared, key=lambda one: one[1] / one[2])
        name = f"gradients, {device}"
        text = f"largest difference from PyTorch's operators {difference:.1e} of at most {limit:g}"
        if difference <= limit:  # not so if it is not a number
            yield ok(name, f"{text}, in {len(compared)} phases")
        else:
            yield error(name, f"{text}, in {what}: the native operators are wrong on this machine",
                        "set ops.path=reference, and report this")


CHECKS = (
    Check("operators", _paths, 110, "compiling takes long here: a run does it at its start, or `pip install .` ahead; "
          "STYLEGAN_DIST_BUILD=never does without", ("PyTorch", "GPU"), late="warning"),
    Check("gradients", _gradients, 40, "set ops.path=reference, and report this", ("PyTorch", "GPU", "operators")),
)
