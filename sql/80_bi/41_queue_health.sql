-- Reads only. The same view as loracomp.queue_health, for roles that may read only schema bi.
CREATE VIEW bi.queue_health AS SELECT h.*, now() AS as_of FROM loracomp.queue_health AS h;
COMMENT ON VIEW bi.queue_health IS 'The queue of each base model now, and how many of its jobs ended in the last hour.';
SELECT loracomp.copy_comments('bi.queue_health', 'loracomp.queue_health', 'bi.prediction');
