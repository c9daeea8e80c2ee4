"""One process of a watched run; started by accelerate's launcher, once or twice."""

import gc
import sys
import warnings

warnings.simplefilter("ignore")

import torch.distributed.nn.functional  # noqa: E402, F401 - keeps the group that there is when it is imported
from train_models import llama, trainer, with_lora  # noqa: E402

from intruscope.train import IntruderWatch  # noqa: E402

if __name__ == "__main__":
    folder = sys.argv[1]
    model = llama()
    run = trainer(with_lora(model), folder, ddp_backend="gloo", max_steps=8)
    run.add_callback(IntruderWatch(run, every=4))
    run.train()
    run.accelerator.end_training()  # closes the process group, which the watch did not make
    del run
    gc.collect()  # and ends its threads
