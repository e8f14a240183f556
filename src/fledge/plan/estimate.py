"""What training will take, about, where no more is known than its work and the speed of matrix products."""

MFU = 0.4  # share of the fastest matrix product that training reaches: measured 0.3 to 0.5 on models of 2M to 100M parameters
OVERHEAD = 1.1  # evaluations and checkpoints


def seconds_of(work: float, flops: float) -> float:
    """Seconds of training that takes `work` FLOPs, where the fastest matrix product has `flops` FLOP/s."""
    return OVERHEAD * work / (MFU * flops)


def minutes_text(seconds: float) -> str:
    """`about 6 minutes`."""
    if seconds >= 5400:
        return f"about {seconds / 3600:.1f} hours"
    return f"about {seconds / 60:.0f} minutes" if seconds >= 90 else f"about {max(1, round(seconds))} seconds"
