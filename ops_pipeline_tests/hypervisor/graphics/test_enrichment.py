"""What sysfs and NVML add to the GPUs of this machine, and that neither can harm a look.

sysfs is a made-up tree of the real files. NVML is a stand-in module with the real functions and errors of `pynvml`,
since machines without an NVIDIA GPU have none; its answers have the shapes that a real H100 gave.
"""

from __future__ import annotations

import itertools
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from ops_pipeline.hypervisor.graphics.devices import MdevType, PciDevice
from ops_pipeline.hypervisor.graphics.nvml import Child, NvmlDevice, NvmlReport, load_nvml, read_nvml
from ops_pipeline.hypervisor.graphics.sysfs import SYSFS, SysfsDevice, read_sysfs
from ops_pipeline.hypervisor.graphics.units import gpus_of, is_other_card, kept_facts
from ops_pipeline_tests.hypervisor.graphics.samples import A, B, gpu

GIB = 1 << 30


def sysfs_tree(root: Path, address: str, *, driver: str = "", group: str = "", **files: str) -> Path:
    """The files of one device, linked as the kernel does it."""
    folder = root / "bus" / "pci" / "devices" / address
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content + "\n")
    for name, target in (("driver", f"drivers/{driver}"), ("iommu_group", f"groups/{group}")):
        if target.rpartition("/")[2]:
            (folder / name).symlink_to(f"../../../../{target}")
    return root


BARS = """0x00000000fa000000 0x00000000faffffff 0x0000000000040200
0x0000383fe0000000 0x0000385fdfffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000383ff0000000 0x0000383ff1ffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x000000000000f000 0x000000000000f07f 0x0000000000040101
0x0000000000000000 0xffffffffffffffff 0x0000000000040200"""


def test_the_files_of_a_device_are_read(tmp_path: Path) -> None:
    root = sysfs_tree(
        tmp_path,
        A,
        driver="vfio-pci",
        group="12",
        vendor="0x10de",
        device="0x20b5",
        numa_node="1",
        boot_vga="1",
        resource=BARS,
        mem_info_vram_total=str(16 * GIB),
    )
    assert read_sysfs(A, root) == SysfsDevice("10de", "20b5", "vfio-pci", 12, 1, True, 16 * GIB, 128 * GIB)


def test_what_the_kernel_does_not_tell_is_unknown(tmp_path: Path) -> None:
    root = sysfs_tree(tmp_path, A, numa_node="-1", boot_vga="nonsense", resource="nonsense\n0x1 0x2")
    assert read_sysfs(A, root) == SysfsDevice()
    assert read_sysfs(B, root) is None


def test_real_devices_of_this_machine_can_be_read() -> None:
    addresses = [path.name for path in (SYSFS / "bus/pci/devices").iterdir()]
    for address in addresses:
        one = read_sysfs(address)
        assert one is not None and len(one.vendor_id) == 4 and len(one.model_id) == 4
    assert addresses


def answer_of(name: str, handle: dict[str, Any]) -> Any:
    if name not in handle:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return handle[name]


def part_of(handle: dict[str, Any], index: int) -> Any:
    if handle["parts"][index] is None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
    return handle["parts"][index]


def fail(code: int | None) -> None:
    if code is not None:
        raise pynvml.NVMLError(code)


def stand_in(*gpus: dict[str, Any], start: int | None = None, count: int | None = None) -> SimpleNamespace:
    """A module with the functions and errors of pynvml over made-up GPUs.

    A GPU is a mapping from the name of a function to its answer; everything else it does not support.
    """

    def begin() -> None:
        fail(start)
        module.open += 1

    def end() -> None:
        module.open -= 1

    def counted() -> int:
        fail(count)
        return len(gpus)

    def gpu_at(index: int) -> dict[str, Any]:
        fail(gpus[index].get("lost"))
        return gpus[index]

    real = {name: getattr(pynvml, name) for name in dir(pynvml) if name.startswith("NVML")}
    real |= {name: partial(answer_of, name) for name in dir(pynvml) if name.startswith("nvml")}
    real |= {"nvmlInit": begin, "nvmlShutdown": end, "nvmlDeviceGetCount": counted}
    real |= {"nvmlDeviceGetHandleByIndex": gpu_at, "nvmlDeviceGetMigDeviceHandleByIndex": part_of}
    module = SimpleNamespace(open=0, **real)
    return module


def card(address: str = "00000000:01:00.0", **answers: Any) -> dict[str, Any]:
    usual = {
        "nvmlDeviceGetPciInfo": SimpleNamespace(busId=address),
        "nvmlDeviceGetUUID": "GPU-8f6a",
        "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 * GIB),
        "nvmlDeviceGetSerial": "1652823012345",
        "nvmlDeviceGetMigMode": [0, 0],
    }
    return {name: value for name, value in (usual | answers).items() if value is not None}


def test_the_driver_tells_uuid_serial_name_and_memory() -> None:
    module = stand_in(card())
    told = NvmlDevice(A, "GPU-8f6a", "1652823012345", "NVIDIA H100 80GB HBM3", 80 * GIB)
    assert read_nvml(module) == NvmlReport((told,))
    assert module.open == 0


def test_cards_that_tell_less_are_told_with_what_they_have() -> None:
    """Consumer cards have no serial number, some boards tell zeros, and old bindings return bytes."""
    module = stand_in(
        card(nvmlDeviceGetSerial=None, nvmlDeviceGetMemoryInfo=None, nvmlDeviceGetMigMode=None),
        card("00000000:02:00.0", nvmlDeviceGetSerial="0", nvmlDeviceGetUUID=b"GPU-2"),
    )
    one, other = read_nvml(module).devices
    assert (one.serial, one.memory_bytes, one.children) == ("", None, ())
    assert (other.address, other.serial, other.uuid) == (B, "", "GPU-2")


def test_mig_instances_and_vgpus_are_children_of_their_gpu() -> None:
    parts = [{"nvmlDeviceGetUUID": "MIG-1", "nvmlDeviceGetName": "MIG 1g.10gb"}, None, {"nvmlDeviceGetUUID": "MIG-3"}]
    divided = card(nvmlDeviceGetMigMode=[1, 1], nvmlDeviceGetMaxMigDeviceCount=3, parts=parts)
    instances = [
        {
            "nvmlVgpuInstanceGetUUID": "e7a3",
            "nvmlVgpuInstanceGetType": {"nvmlVgpuTypeGetName": "GRID A100-10C"},
        },
        {},
    ]
    shared = card("00000000:02:00.0", nvmlDeviceGetActiveVgpus=instances)
    one, other = read_nvml(stand_in(divided, shared)).devices
    assert one.children == (Child("mig", "MIG-1", "MIG 1g.10gb"), Child("mig", "MIG-3", ""))
    assert other.children == (Child("vgpu", "e7a3", "GRID A100-10C"), Child("vgpu", "", ""))


def test_a_gpu_that_fell_off_the_bus_hides_no_other() -> None:
    odd = card(nvmlDeviceGetPciInfo=SimpleNamespace(busId="nowhere"))
    found = read_nvml(stand_in({"lost": pynvml.NVML_ERROR_GPU_IS_LOST}, odd, card("00000000:02:00.0")))
    assert [one.address for one in found.devices] == [B]
    first, second = found.problems
    assert "GPU 0" in first and "lost" in first.lower()
    assert "GPU 1" in second and "'nowhere' is no PCI address" in second


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_without_the_driver_there_is_nothing_to_add_and_nothing_wrong(code: int) -> None:
    assert read_nvml(stand_in(start=code)) == NvmlReport()


def test_a_driver_that_does_not_work_is_told() -> None:
    mismatch = read_nvml(stand_in(start=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH))
    assert mismatch.devices == () and "NVML does not start" in mismatch.problems[0]
    module = stand_in(count=pynvml.NVML_ERROR_UNKNOWN)
    assert "does not count" in read_nvml(module).problems[0]
    assert module.open == 0


def test_the_extra_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_nvml() is pynvml
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert load_nvml() is None
    assert read_nvml(None) == NvmlReport()


def device(address: str = A, pci_class: str = "030200", **fields: Any) -> PciDevice:
    return PciDevice(address, pci_class, **{"vendor_id": "10de", "model_id": "20b5", "model": "GA100"} | fields)


def test_a_unit_is_the_gpu_with_its_card_and_its_group() -> None:
    sound, port, usb = "0000:01:00.1", "0000:00:01.0", "0000:01:00.2"
    members = (port, A, sound)
    one, *others = gpus_of(
        [
            device(iommu_group=7, group_members=members),
            device(sound, "040300", iommu_group=7, group_members=members),
            device(usb, "0c0330", iommu_group=8),
            device(port, "060400", iommu_group=7, group_members=members),
        ]
    )
    assert others == []
    assert (one.iommu_members, one.functions) == ((sound,), (sound, usb))


def test_virtual_functions_are_gpus_of_their_own_below_their_parent() -> None:
    virtual = [f"0000:01:00.{number}" for number in (4, 5)]
    parent, *children = gpus_of(
        [device(virtual_functions=tuple(virtual)), *(device(one, physical_function=A) for one in virtual)]
    )
    assert parent.children == (Child("vf", virtual[0]), Child("vf", virtual[1]))
    assert parent.functions == ()
    assert [(one.address, one.parent_address, one.functions) for one in children] == [(v, A, ()) for v in virtual]
    # A part has its parent's serial, which must not make it the parent.
    assert gpu(uuid="GPU-1", parent_address=A).identities == frozenset()


def test_the_driver_knows_memory_better_than_a_window_on_the_bus() -> None:
    kernel = {A: SysfsDevice("10de", "20b5", "nvidia", 3, 0, False, None, 128 * GIB)}
    (seen,) = gpus_of([device()], sysfs=kernel)
    assert (seen.memory_bytes, seen.memory_source, seen.driver) == (128 * GIB, "bar", "nvidia")
    assert (seen.iommu_group, seen.numa_node, seen.boot_vga) == (3, 0, False)
    (seen,) = gpus_of([device()], sysfs=kernel, nvml=[NvmlDevice(A, "GPU-1", "S", "H100", 80 * GIB)])
    assert (seen.memory_bytes, seen.memory_source, seen.model) == (80 * GIB, "driver", "H100")
    amd = {A: SysfsDevice("1002", "744c", "amdgpu", None, None, True, 24 * GIB, 32 * GIB)}
    (seen,) = gpus_of([device(vendor_id="1002", model_id="744c")], sysfs=amd)
    assert (seen.memory_bytes, seen.memory_source, seen.boot_vga) == (24 * GIB, "driver", True)


def test_another_device_at_the_same_address_of_this_machine_tells_nothing() -> None:
    """A libvirt in another machine, forwarded to a local socket, has its own devices at the same addresses."""
    (seen,) = gpus_of([device()], sysfs={A: SysfsDevice("8086", "0d57", boot_vga=True, bar_bytes=GIB)})
    assert (seen.boot_vga, seen.memory_bytes) == (None, None)


def test_a_gpu_handed_to_vfio_keeps_what_only_its_driver_told() -> None:
    """nvidia-smi loses cards that are bound to vfio-pci."""
    before = gpu(uuid="GPU-1", serial="S", model="NVIDIA H100", memory_bytes=80 * GIB, memory_source="driver")
    seen = gpu(model="GH100", memory_bytes=128 * GIB, memory_source="bar", driver="vfio-pci")
    kept = kept_facts(before, seen)
    assert (kept.uuid, kept.serial, kept.model) == ("GPU-1", "S", "NVIDIA H100")
    assert (kept.memory_bytes, kept.memory_source, kept.driver) == (80 * GIB, "driver", "vfio-pci")
    assert kept_facts(kept, seen) == kept
    fresh = gpu(uuid="GPU-1", model="NVIDIA H100 80GB", memory_bytes=81 * GIB, memory_source="driver")
    assert kept_facts(kept, fresh).memory_bytes == 81 * GIB
    assert kept_facts(kept, fresh).model == "NVIDIA H100 80GB"
    assert kept_facts(gpu(boot_vga=True), gpu()).boot_vga is True


@pytest.mark.parametrize(
    ("before", "after", "other"),
    [
        ({}, {}, False),
        ({"uuid": "GPU-1"}, {}, False),
        ({"uuid": "GPU-1"}, {"uuid": "GPU-2"}, True),
        ({"serial": "1"}, {"serial": "2"}, True),
        ({"serial": "1"}, {"uuid": "GPU-1"}, False),
        ({}, {"model_id": "2204"}, True),
        ({}, {"model": "another spelling"}, False),
    ],
)
def test_another_card_is_one_with_another_identity_or_model(
    before: dict[str, str], after: dict[str, str], *, other: bool
) -> None:
    assert is_other_card(gpu(**before), gpu(**after)) is other


def test_the_order_of_devices_does_not_matter() -> None:
    devices = [device(), device(B), device("0000:01:00.1", "040300")]
    assert len({gpus_of(order) for order in itertools.permutations(devices)}) == 1


def test_kinds_of_mediated_devices_are_told() -> None:
    (seen,) = gpus_of([device(mdev_types=(MdevType("nvidia-468", "GRID A100-4C", 10),))])
    assert seen.profiles == (MdevType("nvidia-468", "GRID A100-4C", 10),)
