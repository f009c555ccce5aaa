-- Reads only, with its owner's rights. The same view as loracomp.worker_status, for roles that may read only schema bi.
CREATE VIEW bi.worker_status AS SELECT w.*, now() AS as_of FROM loracomp.worker_status AS w;
COMMENT ON VIEW bi.worker_status IS 'Workers that reported within the last day: which are alive, and what each is doing.';
SELECT loracomp.copy_comments('bi.worker_status', 'loracomp.worker_status', 'bi.prediction');
