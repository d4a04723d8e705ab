"""Sparse training for JAX: masks as pytrees, methods as optax transformations."""

from sparsejax import scores as scores
from sparsejax.analysis.accounting import TrainingFlops as TrainingFlops
from sparsejax.analysis.accounting import density_history as density_history
from sparsejax.analysis.accounting import rigl_step_flops as rigl_step_flops
from sparsejax.analysis.accounting import top_kast_accounting as top_kast_accounting
from sparsejax.analysis.accounting import training_flops as training_flops
from sparsejax.analysis.dead_units import dead_inputs as dead_inputs
from sparsejax.analysis.dead_units import dead_units as dead_units
from sparsejax.analysis.dead_units import empty_layers as empty_layers
from sparsejax.analysis.exploration import itop_rate as itop_rate
from sparsejax.analysis.flops import ForwardFlops as ForwardFlops
from sparsejax.analysis.flops import forward_flops as forward_flops
from sparsejax.analysis.flops import inference_flops as inference_flops
from sparsejax.analysis.flops import layer_densities as layer_densities
from sparsejax.analysis.gradient_flow import gradient_flow as gradient_flow
from sparsejax.analysis.plasticity import Estimate as Estimate
from sparsejax.analysis.plasticity import Plasticity as Plasticity
from sparsejax.analysis.plasticity import mean_with_interval as mean_with_interval
from sparsejax.analysis.plasticity import prune_once as prune_once
from sparsejax.analysis.plasticity import pruning_plasticity as pruning_plasticity
from sparsejax.analysis.plasticity import regenerate as regenerate
from sparsejax.analysis.summary import summary as summary
from sparsejax.chain import Element as Element
from sparsejax.chain import chain as chain
from sparsejax.chain import drop as drop
from sparsejax.chain import drop_and_grow as drop_and_grow
from sparsejax.chain import grow as grow
from sparsejax.chain import prune as prune
from sparsejax.counts import apportion as apportion
from sparsejax.counts import drop_count as drop_count
from sparsejax.counts import keep_count as keep_count
from sparsejax.distributions import layer_counts as layer_counts
from sparsejax.distributions import uniform_except as uniform_except
from sparsejax.freezing.freeze import FreezeState as FreezeState
from sparsejax.freezing.freeze import freeze_transform as freeze_transform
from sparsejax.freezing.freeze import restore_frozen as restore_frozen
from sparsejax.freezing.supermask import init_scores as init_scores
from sparsejax.freezing.supermask import signed_constant as signed_constant
from sparsejax.freezing.supermask import supermask as supermask
from sparsejax.freezing.supermask import supermask_params as supermask_params
from sparsejax.initialization.auto_s import auto_s as auto_s
from sparsejax.initialization.auto_s import auto_s_features as auto_s_features
from sparsejax.initialization.auto_s import auto_s_labels as auto_s_labels
from sparsejax.initialization.auto_s import auto_s_scores as auto_s_scores
from sparsejax.initialization.baselines import magnitude_pruning as magnitude_pruning
from sparsejax.initialization.baselines import random_pruning as random_pruning
from sparsejax.initialization.collapse import EmptyLayerWarning as EmptyLayerWarning
from sparsejax.initialization.drive import drive as drive
from sparsejax.initialization.drive import drive_scores as drive_scores
from sparsejax.initialization.force import force as force
from sparsejax.initialization.grasp import grasp as grasp
from sparsejax.initialization.grasp import grasp_scores as grasp_scores
from sparsejax.initialization.sbp import (
    rescale_to_edge_of_chaos as rescale_to_edge_of_chaos,
)
from sparsejax.initialization.snip import snip as snip
from sparsejax.initialization.snip import snip_scores as snip_scores
from sparsejax.initialization.synflow import synflow as synflow
from sparsejax.initialization.synflow import synflow_scores as synflow_scores
from sparsejax.masks import PackedMask as PackedMask
from sparsejax.masks import active_counts as active_counts
from sparsejax.masks import apply_masks as apply_masks
from sparsejax.masks import check as check
from sparsejax.masks import churn as churn
from sparsejax.masks import count_active as count_active
from sparsejax.masks import count_prunable as count_prunable
from sparsejax.masks import count_stray as count_stray
from sparsejax.masks import dense_masks as dense_masks
from sparsejax.masks import density as density
from sparsejax.masks import difference as difference
from sparsejax.masks import jaccard as jaccard
from sparsejax.masks import masks_of as masks_of
from sparsejax.masks import pack_masks as pack_masks
from sparsejax.masks import random_masks as random_masks
from sparsejax.masks import sparsity as sparsity
from sparsejax.masks import union as union
from sparsejax.masks import unpack_masks as unpack_masks
from sparsejax.methods.acdc import acdc_phases as acdc_phases
from sparsejax.methods.acdc import acdc_transform as acdc_transform
from sparsejax.methods.consensus import activation_penalty as activation_penalty
from sparsejax.methods.consensus import binary_gate as binary_gate
from sparsejax.methods.consensus import consensus as consensus
from sparsejax.methods.consensus import polarization_penalty as polarization_penalty
from sparsejax.methods.consensus import remove_units as remove_units
from sparsejax.methods.dsr import dsr_transform as dsr_transform
from sparsejax.methods.gmp import gmp_transform as gmp_transform
from sparsejax.methods.granet import granet_transform as granet_transform
from sparsejax.methods.itop import itop_transform as itop_transform
from sparsejax.methods.lottery import lottery_counts as lottery_counts
from sparsejax.methods.lottery import lottery_ticket as lottery_ticket
from sparsejax.methods.lottery import shuffle_masks as shuffle_masks
from sparsejax.methods.mest import mest_transform as mest_transform
from sparsejax.methods.rigl import rigl_transform as rigl_transform
from sparsejax.methods.set import set_transform as set_transform
from sparsejax.methods.snfs import snfs_transform as snfs_transform
from sparsejax.methods.soft_threshold import fold_thresholds as fold_thresholds
from sparsejax.methods.soft_threshold import init_thresholds as init_thresholds
from sparsejax.methods.soft_threshold import soft_threshold as soft_threshold
from sparsejax.methods.soft_threshold import threshold_masks as threshold_masks
from sparsejax.methods.srigl import srigl_transform as srigl_transform
from sparsejax.methods.start import dense_start as dense_start
from sparsejax.methods.start import random_start as random_start
from sparsejax.methods.static import static_transform as static_transform
from sparsejax.methods.top_kast import TopKastState as TopKastState
from sparsejax.methods.top_kast import top_kast_masks as top_kast_masks
from sparsejax.methods.top_kast import top_kast_params as top_kast_params
from sparsejax.methods.top_kast import top_kast_transform as top_kast_transform
from sparsejax.packed import with_packed_masks as with_packed_masks
from sparsejax.parameters import LayerRule as LayerRule
from sparsejax.parameters import layer_rules as layer_rules
from sparsejax.patterns import count_per_neuron as count_per_neuron
from sparsejax.patterns import top_k_per_neuron as top_k_per_neuron
from sparsejax.schedules import constant_prune_rate as constant_prune_rate
from sparsejax.schedules import cosine_prune_rate as cosine_prune_rate
from sparsejax.schedules import cubic_sparsity as cubic_sparsity
from sparsejax.schedules import every as every
from sparsejax.schedules import linear_prune_rate as linear_prune_rate
from sparsejax.schedules import linear_sparsity as linear_sparsity
from sparsejax.scores import Context as Context
from sparsejax.scores import Score as Score
from sparsejax.selection import kth_largest as kth_largest
from sparsejax.selection import top_k_mask as top_k_mask
from sparsejax.topology import prune_by_score as prune_by_score
from sparsejax.topology import prune_magnitude as prune_magnitude
from sparsejax.topology import regrow_by_score as regrow_by_score
from sparsejax.topology import regrow_gradient as regrow_gradient
from sparsejax.topology import regrow_random as regrow_random
from sparsejax.transform import Method as Method
from sparsejax.transform import Metrics as Metrics
from sparsejax.transform import SparseTransformation as SparseTransformation
from sparsejax.transform import SparsifyState as SparsifyState
from sparsejax.transform import get_masks as get_masks
from sparsejax.transform import init_sparse as init_sparse
from sparsejax.transform import sparsify as sparsify

__version__ = "0.1.0"

__all__ = (
    "Context",
    "Element",
    "EmptyLayerWarning",
    "Estimate",
    "ForwardFlops",
    "FreezeState",
    "LayerRule",
    "Method",
    "Metrics",
    "PackedMask",
    "Plasticity",
    "Score",
    "SparseTransformation",
    "SparsifyState",
    "TopKastState",
    "TrainingFlops",
    "acdc_phases",
    "acdc_transform",
    "activation_penalty",
    "active_counts",
    "apply_masks",
    "apportion",
    "auto_s",
    "auto_s_features",
    "auto_s_labels",
    "auto_s_scores",
    "binary_gate",
    "chain",
    "check",
    "churn",
    "consensus",
    "constant_prune_rate",
    "cosine_prune_rate",
    "count_active",
    "count_per_neuron",
    "count_prunable",
    "count_stray",
    "cubic_sparsity",
    "dead_inputs",
    "dead_units",
    "dense_masks",
    "dense_start",
    "density",
    "density_history",
    "difference",
    "drive",
    "drive_scores",
    "drop",
    "drop_and_grow",
    "drop_count",
    "dsr_transform",
    "empty_layers",
    "every",
    "fold_thresholds",
    "force",
    "forward_flops",
    "freeze_transform",
    "get_masks",
    "gmp_transform",
    "gradient_flow",
    "granet_transform",
    "grasp",
    "grasp_scores",
    "grow",
    "inference_flops",
    "init_scores",
    "init_sparse",
    "init_thresholds",
    "itop_rate",
    "itop_transform",
    "jaccard",
    "keep_count",
    "kth_largest",
    "layer_counts",
    "layer_densities",
    "layer_rules",
    "linear_prune_rate",
    "linear_sparsity",
    "lottery_counts",
    "lottery_ticket",
    "magnitude_pruning",
    "masks_of",
    "mean_with_interval",
    "mest_transform",
    "pack_masks",
    "polarization_penalty",
    "prune",
    "prune_by_score",
    "prune_magnitude",
    "prune_once",
    "pruning_plasticity",
    "random_masks",
    "random_pruning",
    "random_start",
    "regenerate",
    "regrow_by_score",
    "regrow_gradient",
    "regrow_random",
    "remove_units",
    "rescale_to_edge_of_chaos",
    "restore_frozen",
    "rigl_step_flops",
    "rigl_transform",
    "scores",
    "set_transform",
    "shuffle_masks",
    "signed_constant",
    "snfs_transform",
    "snip",
    "snip_scores",
    "soft_threshold",
    "sparsify",
    "sparsity",
    "srigl_transform",
    "static_transform",
    "summary",
    "supermask",
    "supermask_params",
    "synflow",
    "synflow_scores",
    "threshold_masks",
    "top_k_mask",
    "top_k_per_neuron",
    "top_kast_accounting",
    "top_kast_masks",
    "top_kast_params",
    "top_kast_transform",
    "training_flops",
    "uniform_except",
    "union",
    "unpack_masks",
    "with_packed_masks",
)
