"""Where an optimizer with its state in 8 bits can train."""

from omegaconf import DictConfig, OmegaConf

from components.launch.settings import last_name


def check(cfg: DictConfig) -> None:
    """Raises ValueError if the optimizer keeps its state in 8 bits and training would be in shards or not on CUDA."""
    target = str(OmegaConf.select(cfg, "stage.optimizer._target_"))
    if last_name(target) != "adamw8bit" and not target.startswith("bitsandbytes."):
        return
    import torch  # only here: all other checks of a config do without

    strategy = str(OmegaConf.select(cfg, "trainer.strategy._target_") or cfg.trainer.strategy)
    if last_name(strategy) == "FullySharded":
        fault = "does not support sharded weights (trainer=fsdp). Use trainer=ddp"
    elif cfg.trainer.accelerator not in ("auto", "gpu", "cuda"):
        fault = f"needs a CUDA GPU, but trainer.accelerator is {cfg.trainer.accelerator}. Use trainer=gpu"
    elif not torch.cuda.is_available():
        fault = "needs a CUDA GPU, but torch finds none here. Use a machine with one"
    else:
        return
    other = "stage.optimizer._target_=components.training.optimizers.adamw"
    raise ValueError(f"stage.optimizer: {last_name(target)} {fault}, or keep the state in 32 bits: {other}")
