"""What a person sees of a run and what is written about it: metric files, progress, tables, warnings.

`writers` keeps `metrics.jsonl` and TensorBoard files, `trackers` those of others, `progress` the bar and its time left,
`tables` what is printed before and after training, `curves` the plots there, `fitted` a table that fits the terminal.
"""

from vit_jax.flops import human as human_count
from vit_jax.human import human_bytes, human_percent, human_seconds
from vit_jax.log.curves import print_curves
from vit_jax.log.fitted import fitted_table
from vit_jax.log.progress import Progress
from vit_jax.log.tables import class_table, metric_text, metric_value, overview, result_table, weights_table
from vit_jax.log.trackers import TRACKERS
from vit_jax.log.trackers import check as check_trackers
from vit_jax.log.trackers import chosen as chosen_trackers
from vit_jax.log.writers import MetricsWriter, parse_metrics, read_metrics, write_pictures
