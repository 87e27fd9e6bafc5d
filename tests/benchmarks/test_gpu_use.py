import sys
import time

from benchmarks.gpu_use import GpuUse, gpu_use

BUSY = "import time\nfor use in (20, 40, 60): print(use, flush=True)\n"


def wait_and_sample(script: str) -> GpuUse:
    """Run a stand-in for nvidia-smi, which ends by itself where a true one goes on."""
    with gpu_use((sys.executable, "-c", script)) as use:
        assert use.child is not None
        while use.child.poll() is None:
            time.sleep(0.01)
    return use


def test_the_mean_use_is_kept() -> None:
    use = wait_and_sample(BUSY)
    assert use.percent == 40
    assert use.absent is None


def test_lines_that_are_no_numbers_are_passed_over() -> None:
    assert wait_and_sample("print('[N/A]'); print(30); print('5')").percent == 17.5


def test_a_program_that_says_nothing_is_absent() -> None:
    use = wait_and_sample("pass")
    assert use.percent is None
    assert "told no use" in str(use.absent)


def test_a_machine_without_nvidia_smi_says_so() -> None:
    with gpu_use(("no-such-program",)) as use:
        pass
    assert (use.percent, use.absent) == (None, "no no-such-program here")


def test_a_program_that_runs_for_ever_is_ended() -> None:
    with gpu_use((sys.executable, "-c", "import time\nwhile True: time.sleep(1)")) as use:
        child = use.child
    assert child is not None
    assert child.poll() is not None
