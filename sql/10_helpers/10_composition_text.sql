-- drop: DROP FUNCTION IF EXISTS loracomp.composition_text(text[], double precision[])
-- Computes only. Heaviest first; null where there are no adapters.
CREATE FUNCTION loracomp.composition_text(tasks text[], weights double precision[])
RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT string_agg(c.task || to_char(c.weight, ' FM990.00'), ' + ' ORDER BY c.weight DESC, c.task)
FROM unnest(tasks, weights) AS c (task, weight);
END;
COMMENT ON FUNCTION loracomp.composition_text IS 'A composition in short, such as rte 0.62 + mnli 0.38.';
