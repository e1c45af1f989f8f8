"""Trainer mix-in: checkpoints hold the state of the techniques' parts, and incomplete ones are skipped on resume.

It wraps Trainer's own saving and resuming; the files are written and checked by `state.py` and `manifest.py`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from .. import lr_scale, mends, shards
from ..errors import CheckpointError, PluginError
from ..registry import is_on
from . import machines, manifest, state
from .hook_calls import CallsHooks
from .ranks import from_first_rank, is_distributed

logger = logging.getLogger(__name__)

# Beside the states of the techniques' parts, of a model in pieces: the parameters that the optimizer keeps no state of,
# and the factors of its parameter groups.
IN_PIECES = "host/in_pieces"


class WholeCheckpoints(CallsHooks):
    """Comes before a Trainer class in the method resolution order; part of `Host`."""

    # The checkpoints that this trainer has written, the latest last.
    _saved: tuple[Path, ...] = ()
    _blaming: Any

    # The disks of the ranks, where they have several, and the checkpoints that rank 0 has had on its own in this run.
    _machines: machines.Machines | None = None
    _of_first_disk: frozenset[str] = frozenset()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        self._machines = machines.machines_of(self.args)
        checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
        if self._machines is not None:
            self._of_first_disk = machines.held_by_first(self._machines, Path(self.args.output_dir))
        return super().train(checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self._writes_manifests:
            manifest.begin_manifest(folder)
        self._barrier()
        save = None if self._machines is None else machines.new_save(self.args)
        with self._committing(folder, save):
            super()._save_checkpoint(model, trial)
        if not self.args.should_save:
            self._barrier()
            if self._writes_manifests:
                manifest.write_manifest(folder, save=save, part=True)
        if self._machines is not None:
            self._of_first_disk |= machines.forget_rotated(self._machines, folder.parent, self._of_first_disk)
            best = from_first_rank(self.args, lambda: self.state.best_model_checkpoint)
            self.state.best_model_checkpoint = best
        self._saved = (*(one for one in self._saved if one != folder and one.is_dir()), folder)
        self._refresh_manifests(self._saved)

    @property
    def _writes_manifests(self) -> bool:
        return bool(self.args.should_save or (self._machines is not None and self._machines.leads_another))

    def _refresh_manifests(self, folders: tuple[Path, ...]) -> None:
        """Update manifests, since the script's class or callbacks may have added or changed files of checkpoints."""
        if self._writes_manifests:
            for folder in folders:
                try:
                    manifest.refresh_manifest(folder)
                except CheckpointError as error:
                    # It would be passed over at a resume; this run goes on.
                    logger.warning("%s is damaged: %s.", folder, error)
                    self._saved = tuple(one for one in self._saved if one != folder)

    def _load_best_model(self) -> None:
        if self._machines is not None:
            self._send_missing(Path(self.state.best_model_checkpoint))
        super()._load_best_model()

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        ended = super()._finalize_training(*args, **kwargs)
        self._refresh_manifests(self._saved)
        return ended

    @contextlib.contextmanager
    def _committing(self, folder: Path, save: str | None) -> Iterator[None]:
        """Write the manifest after the last file that Trainer writes, `trainer_state.json`, and before it deletes old
        checkpoints. Both happen in `_save_checkpoint`, and `save_to_json` of the state is the only call between them.
        """
        if not self.args.should_save:
            yield
            return
        trainer_state, save_to_json = self.state, self.state.save_to_json
        committed = False

        def save_and_commit(json_path: str) -> None:
            save_to_json(json_path)
            commit()

        def commit() -> None:
            nonlocal committed
            committed = True
            # The other ranks write their random state into the same folder; the manifest must cover it.
            self._barrier()
            states = {}
            for key, part in self.ft_stash.parts.items():
                with self._blaming():
                    states[key] = part.state_dict()
            if shards.are_cut_up(self.model) and self.optimizer is not None:
                missing = shards.names_without_state(self.model, lr_scale.innermost(self.optimizer))
                states[IN_PIECES] = {"stateless": missing, "factors": lr_scale.factors_of(self.optimizer)}
            state.write_state(folder, self._ft_techniques, states)
            if (folder / manifest.LAST_STOCK_FILE).is_file():
                manifest.write_manifest(folder, save=save)
            else:
                # A checkpoint of the script's own kind, from which Trainer resumes nothing.
                manifest.withdraw_manifest(folder)

        trainer_state.save_to_json = save_and_commit
        try:
            yield
        finally:
            del trainer_state.save_to_json
        if not committed:
            # The script's class saves in a way of its own.
            commit()

    def _is_distributed(self) -> bool:
        return is_distributed(self.args)

    def _barrier(self) -> None:
        if self._is_distributed():
            dist.barrier()

    def _checkpoint_to_resume(self, wanted: str | bool | None) -> str | bool | None:
        if not wanted:
            if not is_on(state.RESUME_VARIABLE) or not has_whole_checkpoint(self):
                return wanted
            wanted = True
        if self._machines is not None:
            return self._checkpoint_of_machines(self._machines, wanted)
        chosen = wanted
        return from_first_rank(self.args, lambda: self._readable_checkpoint(chosen))

    def _readable_checkpoint(self, wanted: str | bool) -> str:
        try:
            return self._chosen_checkpoint(wanted)
        except OSError as error:
            raise CheckpointError(str(error), code="file-unusable") from error

    def _chosen_checkpoint(self, wanted: str | bool) -> str:
        if wanted is True:
            newest, passed_over = manifest.newest_whole_checkpoint(Path(self.args.output_dir), also=_unreadable_state)
            if newest is None:
                raise self._no_checkpoint(passed_over)
            folder = newest
            for path, reason in passed_over:
                logger.warning("resume: passed over %s (%s), %s", path, reason, _set_aside(path))
        else:
            folder = Path(str(wanted))
            broken = manifest.damage(folder)
            if broken is not None:
                raise _broken(folder, broken)
        self._refuse_changes(folder)
        logger.info("resume: from %s", folder)
        return str(folder)

    def _refuse_changes(self, folder: Path) -> None:
        if not state.allow_changed_by_environment():
            state.refuse_changes(folder, state.read_state(folder), self._ft_techniques)

    def _no_checkpoint(self, passed_over: Iterable[tuple[Path, str]]) -> CheckpointError:
        reasons = "".join(f"\n  {path}: {reason}" for path, reason in passed_over)
        # The text of Trainer's own error, which scripts may match.
        return CheckpointError(
            f"resume_from_checkpoint=True: No valid checkpoint found in output directory "
            f"({self.args.output_dir}).{reasons or ' It holds none at all.'}\n"
            "Start afresh without resume_from_checkpoint.",
            code="checkpoint-missing",
            mend=[mends.use_checkpoint(None)],
        )

    def _checkpoint_of_machines(self, disks: machines.Machines, wanted: str | bool) -> str:
        """`_chosen_checkpoint` where each machine has a part of it; then each has the whole."""
        output_dir = Path(self.args.output_dir)
        named = None if wanted is True else Path(str(wanted))
        name, passed_over = machines.agreed_checkpoint(disks, output_dir, named, _unreadable_state)
        reasons = [(output_dir / one, reason) for one, reason in passed_over]
        if name is None:
            raise self._no_checkpoint(reasons) if named is None else _broken(named, reasons[0][1])
        for path, reason in reasons:
            logger.warning("resume: passed over %s (%s), set aside on each machine", path, reason)
        machines.set_aside_on_all(disks, output_dir, [path.name for path, _ in reasons])
        folder = named or output_dir / name
        self._send_missing(folder)
        from_first_rank(self.args, lambda: self._refuse_changes(folder))
        logger.info("resume: from %s, which each machine has now", folder)
        return str(folder)

    def _send_missing(self, folder: Path) -> None:
        assert self._machines is not None
        machines.send_missing_files(self._machines, folder, self.args.device)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        content = state.read_state(Path(checkpoint)) if checkpoint is not None else None
        in_pieces = content["states"].get(IN_PIECES, {}) if content else {}
        if self.optimizer is not None:
            # Of its own state, which accelerate has let it load.
            shards.drop_marks(lr_scale.innermost(self.optimizer))
        try:
            if self.optimizer is not None and "factors" in in_pieces:
                # torch loads only those entries of parameter groups that are there.
                lr_scale.put_factors(self.optimizer, in_pieces["factors"])
            with shards.without_state(self.model, in_pieces.get("stateless", ())):
                super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            if checkpoint is None or not state.allow_changed_by_environment():
                raise
            raise CheckpointError(
                f"{checkpoint}: its optimizer cannot be taken over ({error}). The techniques of then and now divide "
                "the parameters differently, which --allow-changed-plugins cannot bridge. Resume with the techniques "
                "that it was made with, or load its weights into the model and train without resume_from_checkpoint.",
                code="checkpoint-other-run",
                mend=[*state.back_to(content, self._ft_techniques), mends.use_checkpoint(None)],
            ) from error
        if checkpoint is not None and self.optimizer is not None:
            lr_scale.take_up(self.optimizer, (technique.name for technique in self._ft_techniques))
        for key, part in self.ft_stash.parts.items():
            stored = content["states"].get(key) if content else None
            if stored is not None:
                _load(part, key, stored, Path(str(checkpoint)))
            elif content is not None and not state.allow_changed_by_environment():
                raise CheckpointError(
                    f"{Path(str(checkpoint)) / manifest.STATE_FILE} holds no state of {key}, which would start afresh. "
                    f"{state.ANOTHER} To let it start afresh: --allow-changed-plugins "
                    f"({state.ALLOW_CHANGED_VARIABLE}=1).",
                    code="checkpoint-other-run",
                    mend=[mends.add_flag("--allow-changed-plugins")],
                )


def _broken(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"Can't find a valid checkpoint at {folder}: {folder} cannot be resumed: {reason}. Resume from another "
        "checkpoint, or with resume_from_checkpoint=True, which takes the newest whole one. If it was changed on "
        f"purpose: hf-ft checkpoint sign {folder}",
        mend=_others(folder),
    )


def _others(folder: Path) -> list[mends.Step]:
    """What to resume instead of a checkpoint: the newest whole one beside it, or none."""
    try:
        newest, _ = manifest.newest_whole_checkpoint(folder.parent, also=_unreadable_state)
    except OSError:
        # The error that this is for is what went wrong first.
        newest = None
    return [*([mends.use_checkpoint(str(newest))] if newest else []), mends.use_checkpoint(None)]


def has_whole_checkpoint(trainer: Any) -> bool:
    """Whether there is a checkpoint in the trainer's `output_dir` that `resume_from_checkpoint=True` would take."""
    folder = Path(trainer.args.output_dir)
    disks = machines.machines_of(trainer.args)
    if disks is not None:
        return machines.agreed_checkpoint(disks, folder, None, _unreadable_state)[0] is not None
    found = from_first_rank(trainer.args, lambda: manifest.newest_whole_checkpoint(folder, also=_unreadable_state))
    return found[0] is not None


def _unreadable_state(folder: Path) -> str | None:
    try:
        state.read_state(folder)
    except CheckpointError as error:
        return str(error).removesuffix(state.ANOTHER).strip()
    return None


def _set_aside(folder: Path) -> str:
    try:
        return f"now {manifest.set_aside(folder).name}"
    except OSError as error:
        return f"and it keeps its name, which cannot be changed ({error})"


def _load(part: Any, key: str, stored: dict[str, Any], folder: Path) -> None:
    try:
        part.load_state_dict(stored)
    except PluginError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{folder / manifest.STATE_FILE}: the state of {key} is not of its form ({type(error).__name__}: {error}). "
            "Resume from another checkpoint, or with the version of its plug-in that wrote it.",
            mend=_others(folder),
        ) from error
