"""Sparse-training methods, one paper a file."""

from sparsejax.methods.dsr import dsr_transform as dsr_transform
from sparsejax.methods.gmp import gmp_transform as gmp_transform
from sparsejax.methods.granet import granet_transform as granet_transform
from sparsejax.methods.itop import itop_transform as itop_transform
from sparsejax.methods.mest import mest_transform as mest_transform
from sparsejax.methods.rigl import rigl_transform as rigl_transform
from sparsejax.methods.set import set_transform as set_transform
from sparsejax.methods.snfs import snfs_transform as snfs_transform
from sparsejax.methods.static import static_transform as static_transform
