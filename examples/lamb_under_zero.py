"""LAMB under ZeRO in a DeepSpeed program: `deepspeed --num_gpus 2 examples/lamb_under_zero.py`."""

import os

import deepspeed
import torch

from mslt_ds.optim import Lamb

torch.manual_seed(int(os.environ["RANK"]))  # data by rank; DeepSpeed sends rank 0's weights to all
model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
vectors = [p for p in model.parameters() if p.dim() < 2]  # biases: no decay, trust ratio 1
matrices = [p for p in model.parameters() if p.dim() >= 2]
lamb = Lamb([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], lr=0.02)
config = {
    "train_micro_batch_size_per_gpu": 256,
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,  # needed without a GPU
}
engine, *_ = deepspeed.initialize(model=model, optimizer=lamb, config=config)
lamb.bind(engine)  # the one line that an ordinary optimizer doesn't need

for step in range(100):
    inputs = torch.randn(256, 8, device=engine.device)
    loss = (engine(inputs) - inputs[:, :1] * inputs[:, 1:2]).square().mean()
    engine.backward(loss)
    engine.step()
    if step in (0, 99):
        print(f"step {step} loss {loss.item():.3f}", lamb.trust_ratios(), flush=True)
