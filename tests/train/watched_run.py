"""One process of a watched run, in which others take part."""

import sys

from train_models import llama, trainer, with_lora

from intruscope.train import IntruderWatch

if __name__ == "__main__":
    folder = sys.argv[1]
    model = llama()
    run = trainer(with_lora(model), folder, ddp_backend="gloo", max_steps=8)
    run.add_callback(IntruderWatch(run, every=4))
    run.train()
