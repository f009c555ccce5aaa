-- The rows to answer. The model must be incremental, because dbt drops and recreates other tables, and their declarations with them.
{{ config(materialized='incremental', unique_key='id', post_hook="
    {% if not is_incremental() %}
        ALTER TABLE {{ this }} ADD PRIMARY KEY (id);
        SELECT loracomp.create_answers('{{ this.schema }}.ticket_urgency', source => '{{ this }}',
            prompt => E'Ticket: {text}\\nThis is', choices => '{urgent,not urgent}')
    {% endif %}") }}
SELECT id, text FROM {{ this.schema }}.message
