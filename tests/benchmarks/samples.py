"""Results files as the harness writes them, small, for tests of what reads them."""

from __future__ import annotations

from typing import Any

MACHINE = {"cpu": "toy", "cpu_flags": ["avx2"], "cores": 2}


def turned(ms: float, rounds: int = 8) -> list[float]:
    """Times on a machine that runs at half its speed in every other round."""
    return [ms * (1 + i % 2) for i in range(rounds)]


def contender(ms: float, **more: Any) -> dict[str, Any]:
    """A measured contender whose UNet step takes ``ms``."""
    return {
        "status": "ok",
        "reason": None,
        "precision": "fp32",
        "environment_mib": 225.0,
        "disk_mib": 30.0,
        "peak_memory_mib": 1234.0,
        "load_ms": [None] * 8,
        "cold_start_ms": [3000.0] + [None] * 7,
        "samples_ms": {"unet_b2": turned(ms), "vae_decode": turned(2 * ms)},
        "absent": {},
        "sameness": {
            "unet_l2": 1e-6,
            "latents_l2": 1.5e-5,
            "psnr_db": 61.25,
            "identical": False,
            "flags": [],
        },
    } | more


def peers_report() -> dict[str, Any]:
    """Four contenders: the reference, a faster one, one that failed, one that could not be made."""
    unmeasured = {"samples_ms": {}, "load_ms": [], "cold_start_ms": [], "sameness": None}
    unmeasured |= {"precision": None}
    sizes = dict.fromkeys(("environment_mib", "disk_mib", "peak_memory_mib"))
    same = {"unet_l2": 1e-6, "latents_l2": 0.0, "psnr_db": None, "identical": True, "flags": []}
    other = {
        "unet_l2": 1e-6,
        "latents_l2": 0.9,
        "psnr_db": 8.0,
        "identical": False,
        "flags": ["fewer steps"],
    }
    return {
        "schema": "edgediffusion-peers/1",
        "machine": MACHINE,
        "workload": {"name": "toy", "size": [16, 24], "guidance": 3.0},
        "commit": "0123456789abcdef",
        "complete": True,
        "reference": "diffusers",
        "rounds": 8,
        "anchor": {"identity": {"name": "sgemm"}, "samples_ms": turned(1)},
        "contenders": {
            "diffusers": contender(200, sameness=same),
            "ours": contender(100, absent={"load": "graphs load when they are needed"}),
            "cheat": contender(50, sameness=other, status="failed", reason="ended\n  with 139"),
            "gone": contender(1, **unmeasured, **sizes, status="unavailable", reason="no wheel"),
        },
    }


def throughput_report() -> dict[str, Any]:
    """Two streams make 1.5 times the pictures of one; a batch of two gains nothing."""
    names = {
        "batch 1": (1, 100),
        "batch 2": (2, 200),
        "streams 1": (2, 200),
        "streams 2": (4, 800 / 3),
    }
    return {
        "schema": "edgediffusion-throughput/1",
        "machine": MACHINE,
        "absent": {"GPU use": "no nvidia-smi here"},
        "workloads": {
            name: {
                "pictures": pictures,
                "samples_ms": turned(ms),
                "joules": [{"package-0": 3.0 * pictures}] * 8,
                "gpu_percent": [None] * 8,
            }
            for name, (pictures, ms) in names.items()
        },
    }
