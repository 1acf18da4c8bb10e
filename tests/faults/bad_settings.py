"""Bad values of settings, by stage: overrides that must end a run with one clear message before it has trained."""

ANY = [
    "stage.optimizer.lr=-1", "stage.optimizer.lr=.nan", "stage.optimizer.lr=.inf", "stage.optimizer.betas=[2,2]",
    "stage.optimizer.betas=[0.9]", "stage.optimizer.betas=[-1,0.9]", "stage.optimizer.eps=-1",
    "stage.optimizer.weight_decay=-1", "stage.schedule.warmup_steps=-1", "stage.schedule.kind=wavy",
    "stage.schedule.final_fraction=-1", "stage.schedule.final_fraction=.nan", "data.batch_size=0", "data.batch_size=-3",
    "data.val_fraction=2", "data.val_fraction=-1", "data.val_fraction=1", "data.val_fraction=.nan", "data.num_workers=-1",
    "data.on_malformed=ignore", "data.path=/nowhere/x.jsonl", "data.path=/nowhere/x.pkl", "data.mixture=[{path: a.txt}]",
    "data.mixture=[{path: a.txt, weight: -1}]", "data.mixture=[{path: a.txt, weight: .nan}]", "data.mixture=[7]",
    "trainer.max_steps=0", "trainer.max_steps=-5", "trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=-1",
    "trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=.nan", "trainer.devices=0", "trainer.devices=-7",
    "trainer.precision=7-bit", "trainer.accelerator=abacus", "trainer.strategy=hope", "trainer.val_check_interval=-1",
    "trainer.log_every_n_steps=-1", "trainer.limit_val_batches=-1", "trainer.limit_train_batches=-2", "trainer.profiler=guess",
    "seed=-1", "seed=99999999999999999999", "resume=/nowhere/x.ckpt", "resume=sometimes", "artifacts.tokenizer=/nowhere",
    "callbacks.checkpoints.every_n_steps=0", "callbacks.checkpoints.keep=0", "callbacks.samples.every_n_steps=0",
    "+trainer.max_time=yesterday", "+trainer.max_time='-00:00:01:00'",
]  # fmt: skip
OF_STAGES = {
    "pretrain": [
        "model.hidden_size=0", "model.hidden_size=-8", "model.hidden_size=33", "model.num_hidden_layers=0",
        "model.num_attention_heads=0", "model.num_attention_heads=-2", "model.num_key_value_heads=0",
        "model.num_key_value_heads=-1", "model.intermediate_size=0", "model.max_position_embeddings=0",
        "model.max_position_embeddings=1", "model.rms_norm_eps=-1", "model.rope_theta=-1", "model.rope_theta=0",
        "model.vocab_size=3", "model.vocab_size=-1", "+model.dropout=1", "+model.dropout=-0.1", "+model.head_dim=3",
        "data.num_documents=0", "data.num_documents=-1", "data.longest_document=0", "world.num_names=0", "world.num_names=-1",
    ],
    "sft": ["stage.model.dropout=2", "stage.model.dropout=-1", "data.demonstrations=0", "data.demonstrations=-1",
            "artifacts.pretrain=/nowhere", "trainer.max_epochs=0", "trainer.max_epochs=-3"],
    "rm": ["data.comparisons=0", "data.comparisons=-1", "data.completions=1", "data.completions=-1", "world.noise=2",
           "world.noise=-1", "examination.max_records=0"],
    "dpo": ["stage.beta=-1", "stage.beta=0", "stage.beta=.nan", "stage.variant=other", "stage.label_smoothing=1",
            "stage.label_smoothing=-1"],
    "ppo": [
        "stage.beta=-1", "stage.beta=.nan", "stage.kl_target=0", "stage.kl_target=-1", "stage.kl_horizon=0", "stage.gamma=2",
        "stage.gamma=-1", "stage.lam=2", "stage.lam=-1", "stage.clip=-1", "stage.clip=0", "stage.value_clip=-1",
        "stage.value_coefficient=-1", "stage.target_kl=-1", "stage.target_kl=0", "stage.epochs=0", "stage.epochs=-1",
        "stage.minibatches=0", "stage.minibatches=-1", "stage.score_scale=-1", "stage.score_scale=0", "stage.value_lr=-1",
        "stage.sampling.temperature=0", "stage.sampling.temperature=-1", "stage.sampling.max_new_tokens=0",
        "stage.sampling.max_new_tokens=-1", "stage.sampling.max_new_tokens=9999", "+stage.sampling.top_k=5",
        "+stage.sampling.top_p=0.5", "+stage.sampling.top_p=-1", "stage.missing_end_score=.nan",
        "stage.pretraining_coefficient=1", "stage.pretraining_coefficient=-1", "data.prompts_per_rollout=0",
        "data.prompts_per_rollout=-1", "+stage.clip_high=-1", "+stage.dual_clip=0.5", "artifacts.rm=/nowhere",
        "artifacts.sft=/nowhere",
    ],
    "grpo": ["stage.samples_per_prompt=0", "stage.samples_per_prompt=1", "stage.samples_per_prompt=-1", "stage.variant=other"],
    "tokenizer": ["tokenizer.vocab_size=0", "tokenizer.vocab_size=-1", "tokenizer.vocab_size=100", "tokenizer.num_threads=0",
                  "tokenizer.character_coverage=2", "tokenizer.character_coverage=-1"],
}  # fmt: skip
SETTINGS = [(stage, override) for stage in ("pretrain", "ppo") for override in ANY]
SETTINGS += [(stage, override) for stage, overrides in OF_STAGES.items() for override in overrides]
