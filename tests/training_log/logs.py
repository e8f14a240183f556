"""Made-up logs in the forms of several trainers, and how to read them in a test."""

from pathlib import Path

from fledge.training_log import TrainingLog, read_logs

MINIMIND = """\
Epoch:[1/2](0/1500), loss: 8.912, lr: 0.000550000000, epoch_time: 30.0min
Epoch:[1/2](100/1500), loss: 7.412, lr: 0.000549000000, epoch_time: 28.0min
Epoch:[2/2](0/1500), loss: 5.312, lr: 0.000349000000, epoch_time: 30.0min
"""
NANOCHAT = """\
Number of parameters: 560,988,160
step 00000/01000 (0.00%) | loss: 11.090355 | lrm: 1.00 | dt: 2130.22ms | tok/sec: 246,120 | mfu: 12.10 | total time: 0.00m
Step 00000 | Validation bpb: 3.3000
step 00010/01000 (1.00%) | loss: 9.101 | grad norm: 0.4421 | lrm: 1.00 | dt: 130.22ms | tok/sec: 4,026,120 | mfu: 46.10
Step 00020 | Validation bpb: 2.1000
"""
LITGPT = """\
Epoch 1 | iter 1 step 0 | loss train: 2.312, val: n/a | iter time: 1,234.45 ms
Epoch 1 | iter 2 step 1 | loss train: 2.0, val: n/a | iter time: 234.45 ms (step)
Epoch 1 | iter 3 step 1 | loss train: 3.0, val: n/a | iter time: 234.45 ms
Epoch 1 | iter 4 step 2 | loss train: 2.002, val: 2.4 | iter time: 234.45 ms (step)
"""
TORCHTUNE_BAR = (
    "1|1|Loss: 2.9101:   0%|          | 1/160 [00:01<02:00,  1.3it/s]\r"
    "1|2|Loss: 2.8101:   1%|▏         | 2/160 [00:02<02:00,  1.3it/s]\r"
    "2|161|Loss: 1.8101:   1%|▏         | 1/160 [00:02<02:00,  1.3it/s]\n"
)
TORCHTUNE_FILE = """\
Step 1 | loss:2.9101 lr:2e-05 tokens_per_second_per_gpu:1234.5
Step 2 | loss:2.8101 lr:1.9e-05 tokens_per_second_per_gpu:1334.5
"""
TORCHTITAN = (
    "\x1b[33m[rank0]:[titan] 2025-06-01 12:00:00,123 - root - INFO - \x1b[31mstep:  1  \x1b[32mloss:  8.1234  "
    "\x1b[38;2;180;60;0mgrad_norm:  1.4312  \x1b[34mmemory:  0.50GiB(1.07%)  \x1b[36mtps: 1,234  mfu: 0.40%\x1b[39m\n"
    "[rank0]:[titan] 2025-06-01 12:00:10,123 - root - INFO - step: 10  loss:  6.1234  grad_norm:  1.1312  memory:  1.00GiB\n"
)
NANOGPT = """\
tokens per iteration will be: 491,520
number of parameters: 123.59M
step 0: train loss 10.9899, val loss 10.9876
iter 0: loss 10.9890, time 32000.11ms, mfu -100.00%
iter 10: loss nan, time 20.11ms, mfu 5.10%
iter 20: loss 9.1, time 20.11ms, mfu 5.10%
step 250: train loss 5.1, val loss 5.2
"""
HUGGING_FACE = """\
***** Running training *****
  Num examples = 80,000
  Num Epochs = 5
  Instantaneous batch size per device = 24
  Total train batch size (w. parallel, distributed & accumulation) = 192
  Gradient Accumulation steps = 4
  Total optimization steps = 2,000
  Number of trainable parameters = 124,439,808
{'loss': 2.1, 'grad_norm': 1.25, 'learning_rate': 1e-05, 'epoch': 0.02}
{'loss': 2.0, 'grad_norm': nan, 'learning_rate': 9e-06, 'epoch': 0.05}
{'eval_loss': 2.05, 'eval_runtime': 3.1, 'eval_samples_per_second': 100.1, 'epoch': 0.05}
{'loss': '1.9', 'grad_norm': '1.0', 'learning_rate': '8e-06', 'epoch': '0.07'}
{'train_runtime': 100.0, 'train_samples_per_second': 80.1, 'train_loss': 2.01, 'epoch': 5.0}
"""
HUGGING_FACE_BAR = (
    "  0%|          | 0/100 [00:00<?, ?it/s]\r 10%|█         | 10/100 [00:10<01:30,  1.1it/s]\n"
    "{'loss': 2.1, 'learning_rate': 1e-05, 'epoch': 0.1}\r 20%|█         | 20/100 [00:20<01:30,  1.1it/s]\n"
    "{'loss': 2.0, 'learning_rate': 1e-05, 'epoch': 0.2}\n"
    "  0%|          | 0/7 [00:00<?, ?it/s]\r100%|█         | 7/7 [00:00<00:00, 7.1it/s]\n"
    "{'eval_loss': 2.05, 'epoch': 0.2}\n"
    'Traceback (most recent call last):\n  File "a.py", line 3, in <module>\n    step()\n'
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n"
)
MEGATRON = """\
 [2025-04-13 23:41:12] iteration      100/    5000 | consumed samples:        25600 | elapsed time per iteration (ms): 1147.6 \
| learning rate: 3.000000E-05 | global batch size:   256 | lm loss: 7.399415E+00 | loss scale: 65536.0 | grad norm: 2.918 \
| number of skipped iterations:   1 | number of nan iterations:   0 |
 validation loss at iteration 100 | lm loss value: 6.412000E+00 | lm loss PPL: 6.092E+02 |
"""
LIGHTNING = (
    "Epoch 0:  10%|█  | 10/100 [00:10<01:30,  1.10it/s, v_num=0, train_loss_step=2.10]\r"
    "Epoch 0: 100%|██████████| 100/100 [01:30<00:00,  1.10it/s, v_num=0, train_loss_step=1.90, val_loss=2.00]\r"
    "Epoch 1:  50%|█████     | 50/100 [00:45<00:45,  1.10it/s, v_num=0, train_loss_step=1.80, val_loss=2.00]\n"
)
KERAS = """\
Epoch 1/3
100/100 [==============================] - 5s 50ms/step - loss: 0.6932 - accuracy: 0.5012 - val_loss: 0.6800
Epoch 2/3
100/100 ━━━━━━━━━━━━━━━━━━━━ 5s 50ms/step - accuracy: 0.6012 - loss: 0.5932 - val_loss: 0.6000
"""
CHINESE = """\
2026-01-27 10:00:00,123 INFO 第 1 轮, 步 100, 损失 6.10, 学习率 1e-5, 梯度范数 1.2
2026-01-27 10:02:00,123 INFO 验证损失：5.80，困惑度：330.3
2026-01-27 10:03:00,123 INFO 第 4 轮，步 500，损失 4.77，学习率 1e-5
"""
CHATLM = """\
[2026-01-27 10:00:00.123] [INFO]: training loss: epoch:0, step:50, loss:6.1, device:cuda:0
[2026-01-27 10:00:00.123] [INFO]: training loss: epoch:0, step:1650, loss:5.1, device:cuda:0
[2026-01-27 10:00:00.123] [INFO]: epoch log: epoch:0, avg_loss:5.5, cur_bleu4:0.0294, best_bleu4:0.0294, best_epoch:0
[2026-01-27 10:00:00.123] [INFO]: training loss: epoch:1, step:50, loss:5.0, device:cuda:0
"""
CLASSIC = """\
Epoch [1/5], Step [100/600], Loss: 0.5012
Epoch [1/5], Step [600/600], Loss: 0.4012
Epoch [2/5], Step [100/600], Loss: 0.3512
"""
EPOCHS = """\
Epoch: 1 | Train Loss: 2.1 | Val Loss: 2.2 | Time: 0m 12s
Epoch: 2 | Train Loss: 1.9 | Val Loss: 2.1 | Time: 0m 12s
"""
RESUMED = """\
step 100 loss: 3.0
step 200 loss: 2.5
step 300 loss: 2.4
Resuming from step 200
step 210 loss: 2.6
step 300 loss: 2.3
Killed
"""
DOCUMENT = """\
# Why does my model not learn

The loss is very high (4.5-5.2), see:

```
epoch:4, step:500-1666, loss: 4.5-5.2
epoch:4, avg_loss: 4.771
epoch:4, cur_bleu4: 0.0494 (very low!)
```

My settings:

```python
learn_rate: float = 1e-5  # 0.00001
```
```python
batch_size_per_gpu: int = 24
gradient_accumulation_steps: int = 4
# real batch size = 24 * 2 * 4 = 192
epochs: int = 5
```

80000 rows / (24 * 2 * 4) ≈ 417 updates an epoch. Plan:

```python
@dataclass
class TrainConfigSFT:
    learn_rate: float = 5e-5     # up from 1e-5
    div_factor: int = 25         # from 50 to 25
    batch_size_per_gpu: int = 16
    max_seq_len: int = 256
```

What I hope for:

```
step 50:  loss: 3.5-4.0
step 400: loss: 1.5-2.2
```

```bash
accelerate launch --multi_gpu --num_processes 2 ./train.py train --is_finetune=True
```
"""


def read_text_log(folder: Path, text: str, **options: object) -> TrainingLog:
    """The only log of a text."""
    file = folder / "run.log"
    file.write_text(text, encoding="utf-8", newline="")
    (log,) = read_logs(file, **options)  # type: ignore[arg-type]
    return log


def points(log: TrainingLog, name: str) -> list[tuple[float, float]]:
    """Steps and values of a figure."""
    series = log.series[name]
    return list(zip(series.steps.tolist(), series.values.tolist(), strict=True))
