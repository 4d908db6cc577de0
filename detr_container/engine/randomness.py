"""What a step draws (dropout, drop-path), as a function of seed, step and rank alone.

`torch.manual_seed` gives a CPU's generator the lowest 32 bits of its argument, so that seeds which differ above them
draw the same, and among some hundred thousand steps a few pairs would. Here a hash of all three numbers fills the
generator's whole state, 624 words of 32 bits, instead.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

# Where torch's state of the Mersenne twister (at::CPUGeneratorImpl, 5056 bytes) keeps its words, each in 64 bits.
_WORDS = slice(24, 24 + 624 * 8)


def mixed(seed: int, step: int, rank: int) -> np.random.SeedSequence:
    """A hash of all three, whatever their size."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=16).digest()
    return np.random.SeedSequence(int.from_bytes(digest, "big"))


def seed_step(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Put torch's generators, the CPU's and that of `device`, where they stand at the beginning of a step.

    seed, step, rank: 0 or more, of any size.
    """
    source = mixed(seed, step, rank)
    words = np.random.MT19937(source).state["state"]["key"].astype(np.uint64)
    state = torch.Generator().manual_seed(0).get_state()
    state[_WORDS] = torch.from_numpy(words.view(np.uint8))
    torch.set_rng_state(state)
    if device.type == "cuda":
        # Philox uses all of the 64 bits that it is given.
        torch.cuda.manual_seed(int(source.generate_state(1, np.uint64)[0]))
