"""Training one recognizer by Lightning: exact resume, realignment, learning-rate schedule, dev PER each epoch."""

from __future__ import annotations

import io
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from kaleido_audio.nn import param_groups
from recipes.common import runs
from recipes.common.files import replace_text
from recipes.timit.config import Config
from recipes.timit.corpus import SPLITS, Corpus, CorpusError, Utterance, listed
from recipes.timit.data import Batch, LengthBatches, SpeechDataset, loader, phone_inventory, transcript
from recipes.timit.frontends import build_frontend, spec_of
from recipes.timit.hmm import PhoneBigram, force_align, state_priors, viterbi_paths
from recipes.timit.identity import check_identity, write_identity
from recipes.timit.model import Recognizer, feature_means, frame_mask
from recipes.timit.phones import IGNORE, STATES_PER_PHONE, fold_to_39, transcript_39
from recipes.timit.scoring import score

RECORDED = ("epoch", "train_frame_error", "dev_frame_error", "dev_per", "seconds")
"""What the evaluation and the report need to know of an epoch."""


class Speech(L.LightningDataModule):
    """The three splits of a corpus, each read when first needed.

    Args:
        corpus: from `recipes.timit.corpus.load_corpus`.
        config: hop length, batch size and seed are used.
        progress: show a bar while reading audio.

    Raises:
        CorpusError: utterances that are too short to be realigned, or decoded, at this hop length.
    """

    def __init__(self, corpus: Corpus, config: Config, *, progress: bool = False) -> None:
        super().__init__()
        self.corpus = corpus
        self.config = config
        self.progress = progress
        self.inventory = phone_inventory(corpus)
        self._check_frames()
        self._datasets: dict[str, SpeechDataset] = {}

    def _check_frames(self) -> None:
        """Now, and not after hours, when an utterance has fewer frames than its realignment or its decoding takes."""
        config = self.config
        realigns = 0 < config.realign_after < config.epochs
        short, of_realignment = [], False
        for split in SPLITS:
            for utterance in self.corpus.split(split):
                n_frames = utterance.n_samples // config.hop_length + 1
                n_phones = len(transcript(utterance, self.inventory)) if split == "train" and realigns else 0
                if n_frames < n_phones:
                    of_realignment = True
                    short.append(f"{utterance.wav}: {n_frames} frames for {n_phones} phones ({utterance.phn.name})")
                elif n_frames < STATES_PER_PHONE and split != "train":
                    short.append(f"{utterance.wav}: {n_frames} frames, where a phone takes {STATES_PER_PHONE}")
        if short:
            raise CorpusError(
                f"{self.corpus.root}: utterances too short for --hop-length {config.hop_length}, {len(short)} in all:\n"
                + listed(short, "\n")
                + "\nMend these files, or train with a smaller --hop-length"
                + (" or without realignment (--realign-after 0)." if of_realignment else ".")
            )

    def dataset(self, split: str) -> SpeechDataset:
        """``"train"``, ``"dev"`` or ``"test"``."""
        if split not in self._datasets:
            self._datasets[split] = SpeechDataset(
                getattr(self.corpus, split),
                self.inventory,
                sample_rate=self.corpus.sample_rate,
                hop_length=self.config.hop_length,
                progress=self.progress,
                title=f"Reading {self.corpus.name} {split}",
            )
        return self._datasets[split]

    def batches(self, split: str) -> Iterator[Batch]:
        """All utterances of a split, by length."""
        dataset = self.dataset(split)
        yield from loader(dataset, LengthBatches(dataset.lengths, 2 * self.config.batch_size))

    def train_dataloader(self) -> Any:
        """Shuffled by the seed and the epoch alone, so that a resumed run sees the same batches."""
        assert self.trainer is not None
        dataset = self.dataset("train")
        batches = LengthBatches(
            dataset.lengths,
            self.config.batch_size,
            seed=self.config.seed,
            epoch=self.trainer.current_epoch,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )
        return loader(dataset, batches, pin_memory=torch.cuda.is_available())

    def val_dataloader(self) -> Any:
        """Dev, each utterance in one of the processes."""
        assert self.trainer is not None
        dataset = self.dataset("dev")
        batches = LengthBatches(
            dataset.lengths,
            2 * self.config.batch_size,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )
        return loader(dataset, batches, pin_memory=torch.cuda.is_available())

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Lightning moves tensors, not dataclasses of ours."""
        return batch.to(device)


class PhoneRecognition(L.LightningModule):
    """Hybrid training of a `Recognizer` on frame labels, and the decoding of its scores.

    The labels are HMM states: each segment of the corpus in three, and from epoch ``config.realign_after`` on the
    forced alignment of the transcript by the model itself. They are part of the checkpoint.

    Args:
        config: of the run.
        inventory: phones of the 48 set, in order of their ids.
        sample_rate, bandwidth: of the corpus, Hz.
        bigram: language model of the phones.
    """

    log_prior: Tensor
    lr_scale: Tensor
    best_dev_error: Tensor

    def __init__(
        self,
        config: Config,
        inventory: tuple[str, ...],
        *,
        sample_rate: int,
        bandwidth: float,
        bigram: PhoneBigram,
    ) -> None:
        super().__init__()
        self.config = config
        self.inventory = inventory
        self.bigram = bigram
        n_states = STATES_PER_PHONE * len(inventory)
        self.model = Recognizer(
            build_frontend(config, sample_rate=sample_rate, bandwidth=bandwidth),
            n_states=n_states,
            hidden=config.hidden,
            layers=config.layers,
            dropout=config.dropout,
            subtract_mean=config.normalization != "none",
            preemphasis=config.preemphasis,
        )
        self.register_buffer("log_prior", torch.zeros(n_states))
        self.register_buffer("lr_scale", torch.ones(()))
        self.register_buffer("best_dev_error", torch.full((), float("inf")))
        self.history: list[dict[str, float]] = []
        self.realigned_labels: list[np.ndarray] | None = None
        self._speaker_means: dict[str, Tensor] = {}
        self._dev: dict[str, float] = {}
        self._train = {"loss": 0.0, "errors": 0.0, "frames": 0.0, "seconds": 0.0}
        self._clock = 0.0

    @property
    def data(self) -> Speech:
        """The data module in use."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    # Scores

    def log_posteriors(self, batch: Batch, utterances: list[Utterance]) -> tuple[Tensor, Tensor]:
        """Log posteriors ``(batch, frames, states)`` and frame counts ``(batch,)``."""
        means = None
        if self.config.normalization == "speaker":
            speakers = [utterances[i].speaker for i in batch.index.tolist()]
            means = torch.stack([self._speaker_means[speaker] for speaker in speakers])
        return self.model(batch.waveform, batch.lengths, means)

    def log_likelihoods(self, batch: Batch, utterances: list[Utterance]) -> list[np.ndarray]:
        """Log posterior minus log prior of each utterance, ``(frames, states)``."""
        log_posterior, frame_counts = self.log_posteriors(batch, utterances)
        scores = (log_posterior - self.log_prior).double().cpu().numpy()
        return [score[:count] for score, count in zip(scores, frame_counts.tolist(), strict=True)]

    @torch.no_grad()
    def measure_speakers(self, data: Speech, split: str) -> None:
        """Mean feature vector of every speaker of a split, over the utterances of that split alone."""
        if self.config.normalization != "speaker":
            return
        utterances = data.dataset(split).utterances
        sums: dict[str, Tensor] = {}
        frames: dict[str, int] = {}
        with inference_mode(self):
            for batch in data.batches(split):
                batch = batch.to(self.device)
                features, counts = self.model.features(batch.waveform, batch.lengths)
                means = feature_means(features.transpose(1, 2), frame_mask(counts, features.shape[-1]))
                for i, mean, count in zip(batch.index.tolist(), means, counts.tolist(), strict=True):
                    speaker = utterances[i].speaker
                    sums[speaker] = sums.get(speaker, torch.zeros_like(mean)) + mean * count
                    frames[speaker] = frames.get(speaker, 0) + count
        self._speaker_means.update({speaker: total / frames[speaker] for speaker, total in sums.items()})

    # Labels

    def _use_labels(self, labels: list[np.ndarray], dataset: SpeechDataset) -> None:
        dataset.labels = labels
        known = np.concatenate(labels)
        counts = np.bincount(known[known != IGNORE], minlength=len(self.log_prior))
        self.log_prior.copy_(torch.from_numpy(np.log(state_priors(counts))))

    @torch.no_grad()
    def _realign(self, dataset: SpeechDataset) -> list[np.ndarray]:
        labels: list[np.ndarray] = list(dataset.labels)
        with inference_mode(self):
            for batch in self.data.batches("train"):
                scores = self.log_likelihoods(batch.to(self.device), dataset.utterances)
                for i, score_of_frames in zip(batch.index.tolist(), scores, strict=True):
                    phones = transcript(dataset.utterances[i], self.inventory)
                    labels[i] = force_align(score_of_frames, phones)
        return labels

    # Lightning's hooks

    def configure_optimizers(self) -> Any:
        """One group for the front end, one for the recognizer, each with its learning rate."""
        config = self.config
        multiplier = config.frontend_lr_multiplier
        if multiplier is None:
            multiplier = spec_of(config.frontend).lr_multiplier
        frontend = param_groups(self.model.frontend, config.lr * multiplier)
        recognizer = [p for name, p in self.model.named_parameters() if not name.startswith("frontend.")]
        groups = [
            *frontend,
            {"name": "recognizer", "params": recognizer, "lr": config.lr, "weight_decay": 0.0},
        ]
        for group in groups:
            group["initial_lr"] = group["lr"]
        if config.optimizer == "adam":
            return torch.optim.Adam(groups)
        return torch.optim.RMSprop(groups, alpha=0.95, eps=1e-8)

    def on_train_epoch_start(self) -> None:
        """Realign once, and set the learning rate."""
        config, epoch = self.config, self.current_epoch
        dataset = self.data.dataset("train")
        self.measure_speakers(self.data, "train")
        if epoch == config.realign_after > 0 and self.realigned_labels is None:
            labels = self._realign(dataset) if self.trainer.is_global_zero else None
            self.realigned_labels = self.trainer.strategy.broadcast(labels)
        self._use_labels(self.realigned_labels or dataset.labels, dataset)
        if config.schedule == "steps":
            done = epoch / config.epochs
            self.lr_scale.fill_(0.1 if done >= 0.85 else 0.3 if done >= 0.6 else 1.0)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * self.lr_scale.item()
        self._train = dict.fromkeys(self._train, 0.0)
        self._clock = time.perf_counter()

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        """Seed dropout by the batch's place in the training: a resumed run draws the same masks."""
        place = [self.config.seed, self.current_epoch, batch_index, self.trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Cross-entropy of the labelled frames."""
        log_posterior, _ = self.log_posteriors(batch, self.data.dataset("train").utterances)
        labels = batch.labels.flatten()
        known = labels != IGNORE
        log_posterior, labels = log_posterior.flatten(0, 1)[known], labels[known]
        # The mean over no frame, as where all labels of a batch lie between the frames, would be NaN.
        loss = F.nll_loss(log_posterior, labels) if len(labels) else log_posterior.sum()
        if not torch.isfinite(loss):
            names = [self.data.dataset("train").utterances[i].key for i in batch.index.tolist()]
            raise ValueError(
                f"the loss is {loss.item()} in epoch {self.current_epoch + 1} on the utterances {', '.join(names)}: "
                "try a smaller --lr or --frontend-lr-multiplier"
            )
        frames = len(labels)
        errors = (log_posterior.detach().argmax(dim=-1) != labels).sum()
        self._train["loss"] += loss.item() * frames
        self._train["errors"] += errors.item()
        self._train["frames"] += frames
        self._train["seconds"] = time.perf_counter() - self._clock
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the last dev pass; speakers' means follow the front end as it learns."""
        self._dev = {"errors": 0.0, "frames": 0.0, "phone_errors": 0.0, "phones": 0.0}
        self.measure_speakers(self.data, "dev")

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Frame errors against the corpus's own labels, and phone errors after decoding."""
        dataset = self.data.dataset("dev")
        scores = self.log_likelihoods(batch, dataset.utterances)
        log_prior = self.log_prior.double().cpu().numpy()
        for i, score_of_frames in zip(batch.index.tolist(), scores, strict=True):
            labels = dataset.labels[i]
            known = labels != IGNORE
            guessed = (score_of_frames + log_prior).argmax(axis=-1)
            self._dev["errors"] += float((guessed[known] != labels[known]).sum())
            self._dev["frames"] += float(known.sum())
            (phones,) = decode(score_of_frames, self.bigram, self.inventory, [self.config.monitor_lm_weight])
            counts = score(transcript_39(dataset.utterances[i].segments), phones)
            self._dev["phone_errors"] += counts.errors
            self._dev["phones"] += counts.n_ref

    def on_validation_epoch_end(self) -> None:
        """Dev errors over all processes; newbob's decision."""
        totals = self._summed({**self._dev, **{f"train_{k}": v for k, v in self._train.items()}})
        frame_error = 100.0 * totals["errors"] / max(1.0, totals["frames"])
        per = 100.0 * totals["phone_errors"] / max(1.0, totals["phones"])
        train_frames = max(1.0, totals["train_frames"])
        record = {
            "epoch": self.current_epoch + 1,
            "train_loss": totals["train_loss"] / train_frames,
            "train_frame_error": 100.0 * totals["train_errors"] / train_frames,
            "dev_frame_error": frame_error,
            "dev_per": per,
            "lr_scale": self.lr_scale.item(),
            "seconds": totals["train_seconds"] / self.trainer.world_size,
        }
        for name in ("dev_frame_error", "dev_per"):
            self.log(name, record[name], prog_bar=True)
        self.log("train_frame_error", record["train_frame_error"])
        self.history = [*self.history[: self.current_epoch], record]
        if self.config.schedule == "newbob":
            improvement = 1.0 - frame_error / self.best_dev_error.item()
            if torch.isfinite(self.best_dev_error) and improvement < 0.001:
                self.lr_scale.mul_(0.5)
        self.best_dev_error.fill_(min(frame_error, self.best_dev_error.item()))

    def _summed(self, values: dict[str, float]) -> dict[str, float]:
        local = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        if self.trainer.world_size > 1:
            gathered = self.all_gather(local)
            assert isinstance(gathered, Tensor)
            local = gathered.sum(dim=0)
        return dict(zip(values, local.tolist(), strict=True))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What a resumed run cannot compute again: the labels by an earlier model, and the curves."""
        labels = self.realigned_labels
        checkpoint["realigned_labels"] = None if labels is None else [row.astype(np.int16) for row in labels]
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The other half of `on_save_checkpoint`."""
        theirs, mine = len(checkpoint["state_dict"]["log_prior"]), len(self.log_prior)
        if theirs != mine:
            raise ValueError(
                f"the run was trained on a corpus of {theirs // STATES_PER_PHONE} phones, this one has "
                f"{mine // STATES_PER_PHONE}: give its own corpus by --data"
            )
        labels = checkpoint["realigned_labels"]
        self.realigned_labels = None if labels is None else [row.astype(np.int64) for row in labels]
        self.history = checkpoint["history"]


class HistoryFile(Callback):
    """Writes the curves so far, for whoever watches the run from outside."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write those of the checkpoint: a kill, or a hand, may have left others, and a finished run has no epochs."""
        self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write all epochs so far."""
        assert isinstance(pl_module, PhoneRecognition)
        if trainer.is_global_zero and pl_module.history:
            replace_text(self.path, json.dumps(pl_module.history, indent=1))


class MovableCheckpoint(ModelCheckpoint):
    """Goes on in a folder that was moved, where Lightning forgets the best score and lets a worse model replace it."""

    @property
    def state_key(self) -> str:
        """That of Lightning's class, under which checkpoints have kept the score so far."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over all paths, as the same files in the present folder."""
        folder = Path(self.dirpath or "")

        def moved(path: str) -> str:
            return str(folder / Path(path).name) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        super().load_state_dict(
            {
                **state_dict,
                **{name: moved(state_dict[name]) for name in paths},
                "best_k_models": {moved(path): score for path, score in state_dict["best_k_models"].items()},
                "dirpath": self.dirpath,
            }
        )


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint as a whole or not at all, and says which one cannot be read or written.

    Lightning writes by way of the folder for temporary files; from there into another file system a file is copied,
    of which a kill or a full disk leaves a part, in place of the checkpoint before it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write beside the old one, then replace it."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        # In memory first: of a full disk, torch.save says only that a position in the file is not as expected.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(buffer.getbuffer())
            partial.replace(path)
        except OSError as error:
            raise RuntimeError(
                f"{path} cannot be written ({error.strerror}), what was there before is kept: make room, and the same "
                "command goes on from it"
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read what `save_checkpoint` wrote."""
        return read_checkpoint(Path(path))


class Bars(RichProgressBar):
    """Lightning's bars without the logger's version, which says nothing here."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What is shown beside the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class ProgressFile(Callback):
    """Writes where the run is, about once a second, for the bars of `recipes.timit.compare`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written = 0.0

    def _write(self, trainer: L.Trainer, module: L.LightningModule, *, epoch: int, batch: int) -> None:
        assert isinstance(module, PhoneRecognition)
        if not trainer.is_global_zero:
            return
        dev_per = module.history[-1]["dev_per"] if module.history else None
        state = {
            "epoch": epoch,
            "batch": batch,
            "batches": int(trainer.num_training_batches),
            "dev_per": dev_per,
        }
        replace_text(self.path, json.dumps(state))
        self._written = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Write unless it was done within the last second."""
        if time.monotonic() - self._written > 1.0:
            self._write(trainer, pl_module, epoch=trainer.current_epoch, batch=trainer.fit_loop.batch_idx + 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Always write."""
        self._write(trainer, pl_module, epoch=trainer.current_epoch + 1, batch=0)


@contextmanager
def inference_mode(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for the duration of a block."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def decode(
    log_likelihood: np.ndarray, bigram: PhoneBigram, inventory: tuple[str, ...], lm_weights: Sequence[float]
) -> list[list[str]]:
    """The best phone sequence of one utterance for each weight, folded to the 39 set."""
    paths = viterbi_paths(log_likelihood, bigram, lm_weights)
    return [[fold_to_39(inventory[phone]) for phone in path.phones] for path in paths]


def build_task(config: Config, data: Speech) -> PhoneRecognition:
    """An untrained model for a corpus; its initial weights depend on ``config.seed`` alone."""
    torch.manual_seed(config.seed)
    transcripts = [transcript(utterance, data.inventory) for utterance in data.corpus.train]
    return PhoneRecognition(
        config,
        data.inventory,
        sample_rate=data.corpus.sample_rate,
        bandwidth=data.corpus.bandwidth,
        bigram=PhoneBigram.from_transcripts(transcripts, len(data.inventory)),
    )


def train(
    config: Config,
    data: Speech,
    run_dir: Path,
    *,
    accelerator: str = "auto",
    devices: int = 1,
    progress: bool = True,
    callbacks: list[Callback] | None = None,
) -> bool:
    """Train, or resume from the last finished epoch in ``run_dir``; `load_best` then gives the model.

    Args:
        config: of the run; must equal the one in ``run_dir`` if there is one.
        data: the corpus.
        run_dir: receives config.json, data.json, checkpoints/, history.json and TensorBoard's events.
        accelerator: ``"cpu"``, ``"gpu"`` or ``"auto"``.
        devices: processes; more than one trains by DDP (gloo on CPUs, nccl on GPUs).
        progress: show progress bars.
        callbacks: more of Lightning's callbacks.

    Returns:
        whether this is the first, or only, process of the training: the one that goes on to evaluate.

    Raises:
        ValueError: ``run_dir`` holds a run with another configuration or on another corpus.
    """
    if devices < 1:
        raise ValueError(f"expected devices >= 1, got {devices}")
    check_accelerator(accelerator)
    gpus = 0 if accelerator == "cpu" else torch.cuda.device_count()
    if 0 < gpus < devices:
        raise ValueError(f"--devices {devices}: torch finds {gpus}; give fewer, or --accelerator cpu")
    # First: a setting that no model can be built with leaves no folder behind.
    task = build_task(config, data)
    prepare_run_dir(config, data.corpus, run_dir)
    last = run_dir / "checkpoints" / "last.ckpt"
    # Two of them: `save_last` would write only in epochs that are the best so far.
    checkpoints = [
        MovableCheckpoint(
            run_dir / "checkpoints",
            filename=name,
            monitor=monitor,
            mode="min",
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        for name, monitor in (("best", "dev_per"), ("last", None))
    ]
    _hush_lightning()
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        plugins=[WholeFiles()],
        max_epochs=config.epochs,
        gradient_clip_val=config.clip,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        logger=TensorBoardLogger(run_dir, name="", version="tensorboard"),
        callbacks=[
            *checkpoints,
            HistoryFile(run_dir / "history.json"),
            *([Bars()] if progress else []),
            *(callbacks or []),
        ],
        enable_progress_bar=progress,
        enable_model_summary=False,
        log_every_n_steps=10,
        deterministic="warn" if torch.cuda.is_available() else True,
    )
    try:
        trainer.fit(task, datamodule=data, ckpt_path=str(last) if last.exists() else None, weights_only=False)
    except SystemExit as stop:
        # Lightning makes a plain exit with status 1 of Ctrl-C.
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
    return trainer.is_global_zero


def prepare_run_dir(config: Config, corpus: Corpus, run_dir: Path) -> None:
    """Create the folder of a run, or check that it belongs to the same one.

    A folder without a checkpoint or a result is free: there is nothing to go on from, as after a mistake in a setting.

    Raises:
        ValueError: it holds a run with another configuration or on another corpus; the message says what differs.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        # The first process did it before it started the others.
        return
    if any((run_dir / name).exists() for name in ("checkpoints/last.ckpt", "result.json")):
        runs.check_config(config, Config.load, run_dir)
        check_identity(corpus, run_dir)
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    config.save(run_dir / runs.CONFIG)
    write_identity(corpus, run_dir)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, on the CPU; a ValueError names one that is damaged."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        parts = {"state_dict", "history", "realigned_labels"} & checkpoint.keys()
    except (OSError, MemoryError):
        raise
    except Exception as error:  # garbage can raise anything
        first = str(error).partition("\n")[0][:120]
        raise ValueError(_damaged(path, f"{type(error).__name__}: {first}")) from error
    if len(parts) < 3:
        raise ValueError(_damaged(path, f"has only {sorted(parts)}"))
    return dict(checkpoint)


def _damaged(path: Path, reason: str) -> str:
    return (
        f"{path} cannot be read as a checkpoint of this recipe ({reason}): copy it again, or remove the folder of the "
        "run and train it again"
    )


def check_accelerator(accelerator: str) -> None:
    """Raise ValueError if a GPU is asked for and there is none."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError(f"--accelerator gpu: torch {torch.__version__} finds no CUDA device on this machine")


def load_best(config: Config, data: Speech, run_dir: Path) -> PhoneRecognition:
    """The model of the epoch with the best dev PER, in evaluation mode on the CPU."""
    path = run_dir / "checkpoints" / "best.ckpt"
    if not path.exists():
        raise ValueError(f"{path} is missing: train first")
    task = build_task(config, data)
    checkpoint = read_checkpoint(path)
    task.on_load_checkpoint(checkpoint)
    task.load_state_dict(checkpoint["state_dict"])
    return task.eval()


def curves(run_dir: Path) -> list[dict[str, float]]:
    """The record of every epoch that a run has done, whichever was the best.

    Raises:
        ValueError: neither the last checkpoint nor history.json gives them.
    """
    last = run_dir / "checkpoints" / "last.ckpt"
    if last.exists():
        history: list[dict[str, float]] = read_checkpoint(last)["history"]
        return history
    # It may have been removed to save room. Only then is this file asked: a kill can leave it an epoch ahead.
    remedy = "the run is not finished, or no longer whole; train and evaluate it again"
    return runs.load_history(run_dir / "history.json", RECORDED, remedy)


def _hush_lightning() -> None:
    """Lightning's advertising and advice about worker processes would bury our own messages."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*smaller than the logging interval.*",
        ".*LeafSpec.*is deprecated.*",
        ".*recommended to use .self.log.*sync_dist.*",
    ):
        warnings.filterwarnings("ignore", message=message)
