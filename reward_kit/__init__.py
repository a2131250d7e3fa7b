"From human preferences to a reward signal that can be trusted."
__version__ = "0.1.0"

from importlib import import_module as _import_module

# Public name -> module. Loaded on first use, so that `import reward_kit` imports neither torch nor trl.
_EXPORTS = {
    name: module
    for module, names in {
        "data.report": "wilson_interval plot_history",
        "data.files": "PreferenceDataError",
        "data.columns": "nested_export",
        "data.formats": "to_record PreferenceFormat preference_format",
        "data.quality": "DataReport",
        "data.preferences": "Preferences load_preferences save_preferences split_by_prompt kfold_by_prompt "
        "prompt_overlap",
        "data.playground": "Playground playground_base load_base",
        "model.loss": "LOSSES Loss Judgements register_loss bradley_terry_loss plackett_luce_loss davidson_loss "
        "regression_loss centering_loss reward_loss pairwise_accuracy",
        "model.encoding": "RewardEncoding RewardEncoder prepare_tokenizer",
        "model.encoded_data": "OverflowReport",
        "model.batches": "RewardCollator bind_reward_forward",
        "model.model_folder": "RewardMetadata ModelLoadError load_reward_backbone",
        "model.runs": "TrainingInterrupted",
        "model.training_data": "RewardConfig",
        "model.trainer": "RewardTrainer",
        "scores.text_scorer": "Ranked Best",
        "scores.inference": "RewardModel store_normalization",
        "scores.ensembles": "RewardEnsemble",
        "trust.agreement": "score_preferences",
        "trust.calibration": "calibrate store_calibration true_calibration_error Predictions",
        "trust.edits": "PROBES probe",
        "trust.probes": "run_probes",
        "trust.comparing": "compare_models compare_runs",
        "trust.labels": "CrossValidation cross_validate trainer_recipe annotator_ceiling "
        "most_confident_mistakes suspected_label_errors",
        "trust.learning_curve": "learning_curve",
        "trust.best_of_n": "BestOfNCurve best_of_n_curve best_of_n_scores",
        "trust.trust_report": "evaluate_reward_model TrustReport write_model_card",
        "rl.policies": "PPOConfig",
        "rl.ppo": "PPOTrainer",
        "tools.pipeline": "train_reward_model train_ppo_policy TrainedRewardModel TrainedPolicy",
        "tools.serving": "ServerLimits make_app serve background_server wire_formats",
        "tools.annotator": "PreferenceAnnotator AnnotationSession AnnotatorAgreement annotator_agreement",
        "tools.explorer": "RewardExplorer TokenInfluence ResponseComparison explain_reward compare_responses",
        "tools.dashboards": "LiveDashboard TrainingDashboard PPODashboard",
        "autotrain": "LLMTrainingParams AutoTrainProject",
        "beside.benchmark_files": "load_benchmark",
        "beside.benchmarks": "BenchmarkReport run_benchmark score_benchmark",
        "beside.averaged_weights": "average_reward_models",
        "beside.client": "RewardClient RewardServerError",
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
