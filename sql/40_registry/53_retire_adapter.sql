-- drop: DROP FUNCTION IF EXISTS loracomp.retire_adapter(integer)
-- staged or active -> retired: no job is routed to it any more; it stays for replay. A retired one stays so.
CREATE FUNCTION loracomp.retire_adapter(adapter_id integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
BEGIN
    UPDATE loracomp.adapter AS a SET status = 'retired', retired_at = now()
    WHERE a.id = retire_adapter.adapter_id AND a.status <> 'retired';
    IF NOT found AND NOT EXISTS (SELECT FROM loracomp.adapter AS a WHERE a.id = retire_adapter.adapter_id) THEN
        RAISE EXCEPTION 'there is no adapter with id %', adapter_id
            USING ERRCODE = 'no_data_found', HINT = 'loracomp adapter list names those that there are';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.retire_adapter IS 'Takes an adapter out of routing; it stays for replay and can be activated again.';
