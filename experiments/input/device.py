"""Kept for studies that import it from here; see `experiments.data`."""

from experiments.data import DeviceData as DeviceData
from experiments.data import augmented as augmented
from experiments.data import device_data as device_data
