"""GPUs: how they are found, described and filled, with a fake driver in place of NVIDIA's."""

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from miner import service, settings
from miner.errors import MemoryShortError, NoCudaError
from miner.models.embedded import MODEL_NAME, ModelDirectory
from miner.models.half import write_half_model
from miner.runtime import CPU, CUDA, LlamaRuntime, device, memory
from miner.runtime.device import Device, choose_device, open_identity
from miner.runtime.gpu import load_nvml, read_gpu
from miner.runtime.memory import MIB, MemoryPlan, plan_memory, read_free_ram
from node.cli import miner as command
from node.cli.group import cli
from scripts import gpu_check
from tests.tiny_model import CONTEXT

GIB = 1 << 30


@dataclass
class FakeNvml:
    """GPUs by UUID; `broken` makes every call fail as without a driver."""

    gpus: dict[str, tuple[str, int, int]]
    broken: bool = False
    open_sessions: int = 0
    NVMLError: type[Exception] = field(default=type("NVMLError", (Exception,), {}))

    def nvmlInit(self):  # noqa: N802
        if self.broken:
            raise self.NVMLError("Driver Not Loaded")
        self.open_sessions += 1

    def nvmlShutdown(self):  # noqa: N802
        self.open_sessions -= 1

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return list(self.gpus)[index]

    def nvmlDeviceGetUUID(self, handle):  # noqa: N802
        return handle

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return self.gpus[handle][0]

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        _, total, free = self.gpus[handle]
        return SimpleNamespace(total=total, free=free, used=total - free)

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return "580.65.06"


def two_gpus(**options) -> FakeNvml:
    return FakeNvml(
        {
            "GPU-aaaa-1": ("NVIDIA RTX 4090", 24 * GIB, 20 * GIB),
            "GPU-abbb-2": ("NVIDIA H100 80GB HBM3", 80 * GIB, 79 * GIB),
        },
        **options,
    )


# The driver


def test_a_gpu_is_described_as_its_driver_does():
    nvml = two_gpus()
    gpu = read_gpu(1, {}, nvml)
    assert gpu.public_info == {"name": "NVIDIA H100 80GB HBM3", "memory": "81920 MiB"}
    assert (gpu.free_bytes, gpu.driver) == (79 * GIB, "580.65.06")
    assert nvml.open_sessions == 0


@pytest.mark.parametrize(
    ("visible", "index", "name"),
    [
        ("1", 0, "NVIDIA H100 80GB HBM3"),
        ("1,0", 1, "NVIDIA RTX 4090"),
        (" 1 , 0 ", 1, "NVIDIA RTX 4090"),
        ("GPU-abbb", 0, "NVIDIA H100 80GB HBM3"),
        ("GPU-aaaa-1,GPU-abbb-2", 1, "NVIDIA H100 80GB HBM3"),
        ("0,7,1", 0, "NVIDIA RTX 4090"),
    ],
)
def test_gpus_are_counted_as_cuda_shows_them(visible, index, name):
    assert read_gpu(index, {"CUDA_VISIBLE_DEVICES": visible}, two_gpus()).name == name


@pytest.mark.parametrize(
    ("visible", "index"),
    [
        (None, 2),
        (None, -1),
        ("", 0),
        ("-1", 0),
        ("7", 0),
        ("0,7,1", 1),
        ("1,1", 1),
        ("GPU-a", 0),
        ("GPU-x", 0),
        ("MIG-1", 0),
        ("²", 0),
    ],
)
def test_a_gpu_that_cuda_does_not_show_is_an_error(visible, index):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    nvml = two_gpus()
    with pytest.raises(NoCudaError, match=f"no GPU {index}"):
        read_gpu(index, environment, nvml)
    assert nvml.open_sessions == 0


@given(st.text(max_size=20), st.integers(0, 3))
def test_any_setting_of_visible_gpus_is_read_or_refused(visible, index):
    with contextlib.suppress(NoCudaError):
        assert read_gpu(index, {"CUDA_VISIBLE_DEVICES": visible}, two_gpus()) is not None


def test_a_driver_that_cannot_be_asked_is_no_gpu_known(caplog):
    assert read_gpu(0, {}, two_gpus(broken=True)) is None
    assert "Driver Not Loaded" in caplog.text
    assert read_gpu(0, {}, None) is None


def test_the_real_module_has_what_the_fake_has():
    nvml = load_nvml()
    if nvml is None:
        pytest.skip("nvidia-ml-py is not installed: it belongs to the GPU build's requirements")
    names = [name for name in dir(FakeNvml) if name.lower().startswith("nvml")]
    assert len(names) > 7
    assert all(hasattr(nvml, name) for name in [*names, "NVMLError"])


def test_a_miner_tells_of_the_gpu_it_uses(monkeypatch):
    monkeypatch.setattr(service, "load_nvml", two_gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert service.read_gpu_info(0) == {"name": "NVIDIA H100 80GB HBM3", "memory": "81920 MiB"}
    monkeypatch.setattr(service, "load_nvml", lambda: None)
    assert service.read_gpu_info(0) is None


# The choice


class FakeSession:
    def __init__(self, providers):
        self._providers = providers

    def get_providers(self):
        return self._providers


@pytest.fixture
def cuda_build(monkeypatch):
    """This machine with a build for CUDA and a GPU; the test says what opening gives."""
    monkeypatch.setattr(device.ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(device.ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(device, "cuda_device_is_there", lambda: True)
    # Set first, so that what the code sets is undone after the test.
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "")
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    opened: list[Device] = []

    def answer(providers):
        def open_one(chosen, dtype, values):
            opened.append(chosen)
            if isinstance(providers, Exception):
                raise providers
            return FakeSession(providers)

        monkeypatch.setattr(device, "open_identity", open_one)
        return opened

    return answer


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_a_gpu_that_starts_is_taken(cuda_build, asked):
    opened = cuda_build([CUDA, CPU])
    assert choose_device(asked, 1) == Device(provider=CUDA, index=1) == opened[0]
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    (_, options), cpu = opened[0].providers(records=True)
    assert (options["device_id"], options["use_tf32"], cpu) == ("1", "0", CPU)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([CPU], r'could not start CUDA; "make setup GPU=1" installs the CUDA libraries'),
        (
            RuntimeError("x.cc:7 Fail CUDA failure 100: no device ; GPU=-1 ; file=x.cc"),
            "GPU 0 cannot be used: CUDA failure 100: no device",
        ),
        (RuntimeError("a" * 400), "GPU 0 cannot be used: " + "a" * 300),
    ],
)
def test_a_gpu_that_does_not_start_is_told_and_not_claimed(cuda_build, caplog, given, said):
    cuda_build(given)
    with pytest.raises(NoCudaError) as caught:
        choose_device("cuda", 0)
    assert said in str(caught.value)
    assert "file=" not in str(caught.value)
    assert choose_device("auto", 0) == Device(provider=CPU)
    assert said in caplog.text


def test_the_cpu_that_was_asked_for_is_taken_without_a_look_at_gpus(cuda_build):
    opened = cuda_build([CUDA, CPU])
    assert choose_device("cpu", 0) == Device(provider=CPU)
    assert opened == []


def test_a_model_that_no_gpu_runs_is_not_tried_on_one(cuda_build):
    opened = cuda_build([CUDA, CPU])
    assert choose_device("auto", 0, unfit="too odd").provider == CPU
    with pytest.raises(NoCudaError, match="too odd"):
        choose_device("cuda", 0, unfit="too odd")
    assert opened == []


def test_the_trial_graph_runs():
    session = open_identity(Device(provider=CPU), np.float32, 3)
    values = np.array([1, 2, 3], np.float32)
    assert session.run(None, {"s": values})[0].tolist() == [1, 2, 3]


# Memory


def plan(free=8 * GIB, slots=16, context=8192, *, is_cuda=True) -> MemoryPlan:
    return plan_memory(
        free_bytes=free,
        weights_bytes=GIB,
        token_bytes=65_536,
        context=context,
        slots=slots,
        is_cuda=is_cuda,
    )


def test_a_plan_adds_weights_work_and_the_cache_of_all_slots():
    fixed = int(1.1 * GIB) + 1280 * MIB
    assert plan().needed_bytes == fixed + 16 * 8192 * 65_536
    assert plan(is_cuda=False).fixed_bytes == 2 * GIB + 256 * MIB


@given(st.integers(0, 64 * GIB), st.integers(1, 64), st.integers(1, 1 << 17))
def test_what_a_plan_says_would_fit_fits_and_no_more(free, slots, context):
    asked = plan(free, slots, context)
    fit = asked.slots_that_fit
    if fit:
        plan(free, fit, context).check("here")
    with pytest.raises(MemoryShortError):
        plan(free, fit + 1, context).check("here")
    if longest := asked.context_that_fits:
        plan(free, slots, longest).check("here")


def test_a_model_that_does_not_fit_is_refused_with_the_figures():
    with pytest.raises(MemoryShortError) as caught:
        plan().check("GPU 0")
    assert str(caught.value) == (
        "not enough memory on GPU 0: needs 10,598 MiB of 8,192 MiB: 2,406 MiB for weights and "
        "work, 16 slots of 8192 tokens, 65536 bytes a token; 11 slots, or a context of 5785, "
        "would fit"
    )
    with pytest.raises(MemoryShortError, match="smaller model or a larger device"):
        plan(free=GIB).check("GPU 0")


def test_fewer_slots_are_taken_if_so_few_will_do():
    assert plan().reduced_to_fit(2).slots == 11
    assert plan(slots=4).reduced_to_fit(2).slots == 4
    with pytest.raises(MemoryShortError):
        plan().reduced_to_fit(12).check("here")


def test_a_runtime_takes_the_slots_that_fit_or_refuses(tiny_directory, monkeypatch):
    fixed = sum(p.stat().st_size for p in tiny_directory.glob("model.onnx*")) * 2 + 256 * MIB
    room = 5 * CONTEXT * 2 * 2 * 2 * 32 * 4  # of layers, keys and values, heads, size, bytes
    monkeypatch.setattr(memory, "read_free_ram", lambda: fixed + room)
    options = {"threads": 1, "context": CONTEXT, "provider": "cpu"}
    assert LlamaRuntime(tiny_directory, slots=9, least_slots=2, **options).slots == 5
    assert LlamaRuntime(tiny_directory, slots=5, **options).slots == 5
    with pytest.raises(MemoryShortError, match="5 slots, or a context of 53, would fit"):
        LlamaRuntime(tiny_directory, slots=6, **options)


def test_a_machine_whose_memory_cannot_be_read_is_not_planned(tiny_directory, monkeypatch, caplog):
    monkeypatch.setattr(memory, "read_free_ram", lambda: None)
    runtime = LlamaRuntime(
        tiny_directory, threads=1, context=CONTEXT, slots=7, least_slots=1, provider="cpu"
    )
    assert runtime.slots == 7
    assert "nothing is planned" in caplog.text


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    2048 kB\n"}, 2 * MIB),
        ({"proc/meminfo": "MemAvailable: some kB\n"}, None),
        (
            {
                "proc/meminfo": "MemAvailable: 2048 kB\n",
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "1048576\n",
                "sys/fs/cgroup/memory.current": "1000000\n",
                "sys/fs/cgroup/memory.stat": "anon 5\ninactive_file 200000\n",
            },
            248_576,
        ),
        (
            {
                "proc/meminfo": "MemAvailable: 2048 kB\n",
                "proc/self/cgroup": "0::/user/miner\n",
                "sys/fs/cgroup/user/memory.max": "1000\n",
                "sys/fs/cgroup/user/memory.current": "400\n",
                "sys/fs/cgroup/user/miner/memory.max": "max\n",
                "sys/fs/cgroup/user/miner/memory.current": "300\n",
            },
            600,
        ),
        (
            {
                "proc/meminfo": "MemAvailable: 2048 kB\n",
                "proc/self/cgroup": "1:memory:/old\n0::/../../secret\n",
                "sys/fs/cgroup/memory.max": "9\n",
                "sys/fs/cgroup/memory.current": "10\n",
            },
            0,
        ),
    ],
)
def test_free_memory_is_what_the_kernel_and_the_control_groups_leave(tmp_path, files, free):
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert read_free_ram(tmp_path) == free


# The command


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The settings that the command makes of its options, on a machine with such a device."""
    kept: list[service.MinerSettings] = []
    monkeypatch.setattr(command, "configure_logging", lambda path, log_format: None)
    monkeypatch.setattr(command, "run_miner", lambda settings: kept.append(settings) or 0)
    monkeypatch.setattr(
        command,
        "prepare_embedded_model",
        lambda cache, progress, *, half: ModelDirectory(
            name=MODEL_NAME, path=Path("half" if half else "whole"), digest=""
        ),
    )

    def call(chosen: Device, *options: str) -> service.MinerSettings:
        def choose(provider, gpu):
            if provider == "cuda" and chosen.provider != CUDA:
                raise NoCudaError("there is none")
            return chosen

        monkeypatch.setattr(command, "choose_device", choose)
        arguments = ["miner", "--keyfile", str(tmp_path / "key.json"), *options]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output
        return kept[-1]

    return call


@pytest.mark.parametrize(
    ("options", "on_cpu", "on_gpu"),
    [
        ([], {MODEL_NAME: Path("whole")}, {MODEL_NAME: Path("half")}),
        (["--model", MODEL_NAME], {MODEL_NAME: Path("whole")}, {MODEL_NAME: Path("half")}),
        (["--model", "a=/m"], {"a": Path("/m")}, {"a": Path("/m")}),
        (
            ["--model", "a=/m", "--model", MODEL_NAME],
            {"a": Path("/m"), MODEL_NAME: Path("whole")},
            {"a": Path("/m"), MODEL_NAME: Path("half")},
        ),
    ],
)
def test_the_embedded_model_is_the_variant_for_the_device(mine, options, on_cpu, on_gpu):
    assert mine(Device(provider=CPU), *options).models == on_cpu
    assert mine(Device(provider=CUDA), *options).models == on_gpu


def test_slots_that_nobody_asked_for_are_as_many_as_fit(mine):
    cpu, gpu = Device(provider=CPU), Device(provider=CUDA)
    free = mine(cpu)
    assert (free.slots, free.least_slots) == (settings.CPU_SLOTS, 1)
    asked = mine(gpu, "--slots", "20", "--provider", "cuda", "--gpu", "3")
    assert (asked.slots, asked.least_slots, asked.provider, asked.gpu) == (20, 20, "cuda", 3)
    assert mine(gpu).slots == settings.GPU_SLOTS


# The check for owners of GPUs


def test_the_gpu_check_runs_every_check_and_prints_a_table(tiny_directory, tmp_path, capsys):
    """On the CPU against itself: what it finds says nothing about a GPU."""
    (tmp_path / "half").mkdir()
    write_half_model(tiny_directory, tmp_path / "half")
    options = ["--provider", "cpu", "--model", str(tmp_path / "half"), "--context", str(CONTEXT)]
    status = gpu_check.main([*options, "--slots", "5", "--tokens", "3", "--seconds", "0.01"])
    lines = capsys.readouterr().out.splitlines()
    assert status == 0
    for name in (
        *("provider", "logits", "greedy texts", "slot copies", "repeats", "prefill"),
        *("decode, 4 rows", "1 answers", "12 answers"),
    ):
        assert any(line.startswith(name) for line in lines), name
    assert not any("FAILS" in line for line in lines)


def test_the_gpu_check_fails_where_logits_differ(tiny_directory, monkeypatch, capsys):
    score = LlamaRuntime.score

    def score_badly(self, ids, **place):
        wrong = score(self, ids, **place)
        return wrong + (len(ids) > 8) * np.random.default_rng().normal(0, 1, wrong.shape)

    monkeypatch.setattr(LlamaRuntime, "score", score_badly)
    options = ["--provider", "cpu", "--model", str(tiny_directory), "--context", str(CONTEXT)]
    assert gpu_check.main([*options, "--slots", "2", "--tokens", "1", "--seconds", "0.01"]) == 1
    assert any(
        line.startswith("logits") and "FAILS" in line
        for line in capsys.readouterr().out.splitlines()
    )


def test_the_gpu_check_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(device, "cuda_device_is_there", lambda: False)
    assert gpu_check.main([]) == 2
    assert "Error: " in capsys.readouterr().err
