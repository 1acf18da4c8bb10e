"""Sharded training: FSDP2 over all processes of a run."""

from lightning.pytorch.strategies import ModelParallelStrategy


class FullySharded(ModelParallelStrategy):
    """Parameters, gradients and optimizer state in shards, one per process; a stage applies it to its models.

    Lightning's own "auto" puts the data-parallel dimension over nodes only, and tensor parallelism inside each.
    save_distributed_checkpoint: a folder with a file per process; false: one plain file, which any strategy resumes.
    """

    def __init__(self, save_distributed_checkpoint: bool = False) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()
