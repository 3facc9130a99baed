"""Trains nnU-Net's default for a given time and segments test cases; runs in its own environment.

    PYTHON worth/nnunet_driver.py DATASET_ID SECONDS IMAGES OUT --seed 0 --threads 2

`nnUNet_raw`, `nnUNet_preprocessed` and `nnUNet_results` are set by the caller. It plans and
preprocesses, times a few iterations, and then trains 3d_fullres on all training cases with so many
epochs of so many iterations that its schedule ends when the time is spent: all of nnU-Net's default
but the length. Planning and preprocessing count.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch

TIMED_ITERATIONS = 3
EPOCHS = 20
"""Epochs of a training: the learning rate changes once an epoch."""


def main() -> None:
    """Run the whole pipeline."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    started = time.monotonic()
    torch.set_num_threads(options.threads)
    random.seed(options.seed)
    np.random.seed(options.seed)
    torch.manual_seed(options.seed)

    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.run.run_training import get_trainer_from_args

    extract_fingerprints([options.dataset], num_processes=options.threads)
    plan_experiments([options.dataset])
    preprocess([options.dataset], configurations=["3d_fullres"], num_processes=[options.threads])
    device = torch.device("cpu")

    def trainer_of(epochs: int, iterations: int):
        trainer = get_trainer_from_args(str(options.dataset), "3d_fullres", "all", device=device)
        trainer.num_epochs = epochs
        trainer.num_iterations_per_epoch = iterations
        # nothing is chosen by them
        trainer.num_val_iterations_per_epoch = 1
        trainer.save_every = epochs + 1
        return trainer

    probe = trainer_of(1, TIMED_ITERATIONS)
    probe.on_train_start()
    probe.on_epoch_start()
    probe.on_train_epoch_start()
    probe.train_step(next(probe.dataloader_train))
    at = time.monotonic()
    for _ in range(TIMED_ITERATIONS):
        probe.train_step(next(probe.dataloader_train))
    each = (time.monotonic() - at) / TIMED_ITERATIONS
    left = options.seconds - (time.monotonic() - started)
    iterations = max(1, int(left / (each * (EPOCHS + 1))))
    epochs = max(1, min(EPOCHS, int(left / (each * (iterations + 1)))))
    trainer = trainer_of(epochs, iterations)
    trainer.run_training()
    trained = time.monotonic() - started

    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=True,
        perform_everything_on_device=False,
        device=device,
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(
        trainer.output_folder_base, ("all",), "checkpoint_final.pth"
    )
    predictor.predict_from_files(
        str(options.images),
        str(options.out),
        save_probabilities=False,
        num_processes_preprocessing=1,
        num_processes_segmentation_export=1,
    )
    predicted = time.monotonic() - started - trained
    told = {
        "seconds": trained,
        "predict_seconds": predicted,
        "iterations": epochs * iterations,
        "seconds_an_iteration": each,
    }
    (options.out / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
