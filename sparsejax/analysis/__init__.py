"""Reports on masks and runs."""

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
