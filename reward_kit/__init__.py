"From human preferences to a reward signal that can be trusted."
__version__ = "0.1.0"

from importlib import import_module as _import_module

# Public name -> module. Loaded on first use, so that `import reward_kit` imports neither torch nor trl.
_EXPORTS = {
    name: module
    for module, names in {
        "data": "Preferences DataReport PreferenceDataError load_preferences save_preferences to_record split_by_prompt kfold_by_prompt prompt_overlap",
        "playground": "Playground playground_base load_base",
        "loss": "LOSSES bradley_terry_loss plackett_luce_loss davidson_loss regression_loss centering_loss reward_loss pairwise_accuracy",
        "encoding": "RewardEncoding RewardEncoder RewardCollator RewardMetadata ModelLoadError prepare_tokenizer bind_reward_forward load_reward_backbone",
        "trainer": "RewardConfig RewardTrainer",
        "inference": "RewardModel RewardEnsemble average_reward_models store_normalization",
        "ppo": "PPOConfig PPOTrainer",
        "agreement": "wilson_interval score_preferences",
        "calibration": "calibrate store_calibration",
        "probes": "run_probes",
        "benchmarks": "load_benchmark run_benchmark score_benchmark",
        "small_data": "cross_validate learning_curve annotator_ceiling compare_models compare_runs suspected_label_errors",
        "widgets": "PreferenceAnnotator RewardExplorer TrainingDashboard PPODashboard",
        "evaluation": "evaluate_reward_model TrustReport write_model_card",
        "serving": "RewardClient RewardServerError ServerLimits make_app serve",
        "autotrain": "LLMTrainingParams AutoTrainProject train_reward_model train_ppo_policy",
    }.items()
    for name in names.split()
}
__all__ = sorted(_EXPORTS)


def __getattr__(name):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'reward_kit' has no attribute {name!r}")
    value = getattr(_import_module(f"reward_kit.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *_EXPORTS])
