"""Sparse-training methods, one paper a file."""

from sparsejax.methods.acdc import acdc_phases as acdc_phases
from sparsejax.methods.acdc import acdc_transform as acdc_transform
from sparsejax.methods.gmp import gmp_transform as gmp_transform
from sparsejax.methods.granet import granet_transform as granet_transform
from sparsejax.methods.rigl import rigl_transform as rigl_transform
from sparsejax.methods.set import set_transform as set_transform
from sparsejax.methods.soft_threshold import fold_thresholds as fold_thresholds
from sparsejax.methods.soft_threshold import init_thresholds as init_thresholds
from sparsejax.methods.soft_threshold import soft_threshold as soft_threshold
from sparsejax.methods.soft_threshold import threshold_masks as threshold_masks
from sparsejax.methods.srigl import srigl_transform as srigl_transform
from sparsejax.methods.static import static_transform as static_transform
from sparsejax.methods.top_kast import TopKastState as TopKastState
from sparsejax.methods.top_kast import top_kast_masks as top_kast_masks
from sparsejax.methods.top_kast import top_kast_params as top_kast_params
from sparsejax.methods.top_kast import top_kast_transform as top_kast_transform
