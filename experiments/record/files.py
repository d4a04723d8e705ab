"""Kept for studies that import it from here; see `experiments.files`."""

from experiments.files import writable_directory as writable_directory
from experiments.files import write_atomically as write_atomically

write_bytes_atomically = write_atomically
