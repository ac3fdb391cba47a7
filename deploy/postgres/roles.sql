-- Roles of the operations database, each with what its work needs and no more. Run it as a superuser, on that database:
--
--     psql -v ON_ERROR_STOP=1 -d ops -f deploy/postgres/roles.sql
--
-- before the first `ops-pipeline migrate` and after every one; it may be repeated at any time. Another prefix of the
-- names, for a second deployment on the same server: -v prefix=staging. See README.md beside this file.

\set ON_ERROR_STOP on
\if :{?prefix}
\else
    \set prefix ops
\endif
\set migrator :prefix _migrator
\set jobs :prefix _jobs
\set gateway :prefix _gateway
\set platform :prefix _platform
\set lab :prefix _lab
\set reader :prefix _reader

-- Logins get no password here: set each with \password, so that it stands in no file and no log.
SELECT format('CREATE ROLE %I %s', role, CASE WHEN login THEN 'LOGIN' ELSE 'NOLOGIN' END)
FROM (VALUES
    (:'migrator', true), (:'jobs', true), (:'gateway', true), (:'platform', true), (:'lab', true), (:'reader', true),
    (:'prefix' || '_domain_usage', false), (:'prefix' || '_domain_hypervisor', false),
    (:'prefix' || '_domain_services', false), (:'prefix' || '_domain_analysis', false),
    (:'prefix' || '_domain_maintenance', false), (:'prefix' || '_domain_operations', false)
) AS wanted (role, login)
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role)
\gexec

BEGIN;

-- Nobody who is not named here connects, makes tables, or fills the disk with temporary ones.
SELECT format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database()) \gexec
SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), role)
FROM unnest(ARRAY[:'migrator', :'jobs', :'gateway', :'platform', :'lab', :'reader']) AS role
\gexec
REVOKE ALL ON SCHEMA public FROM PUBLIC;
SELECT format('GRANT USAGE ON SCHEMA public TO %I', role)
FROM unnest(ARRAY[:'jobs', :'gateway', :'platform', :'lab', :'reader']) AS role
\gexec

-- Owns every table, and is used by `ops-pipeline migrate` alone.
GRANT USAGE, CREATE ON SCHEMA public TO :"migrator";

-- DATABASE_URL of daemon, runs, web servers and metrics. Roll-ups are staged in temporary tables; Dagster makes and
-- migrates its own tables, in a schema of its own, where the daemon's lead is kept too.
SELECT format('GRANT TEMPORARY ON DATABASE %I TO %I', current_database(), :'jobs') \gexec
CREATE SCHEMA IF NOT EXISTS dagster AUTHORIZATION :"jobs";
SELECT format('GRANT %I TO %I', :'prefix' || '_domain_' || name, :'jobs')
FROM unnest(ARRAY['usage', 'hypervisor', 'services', 'analysis', 'maintenance', 'operations']) AS name
\gexec

-- What a later migration makes is usable by the jobs at once, and by the others once this has run again.
ALTER DEFAULT PRIVILEGES FOR ROLE :"migrator" IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO :"jobs";

-- The tables. What is taken back first is granted again below: what an older release granted does not stay.
CREATE TEMPORARY TABLE granted (role text, privileges text, tables text[]) ON COMMIT DROP;
INSERT INTO granted VALUES
    ('domain_usage', 'SELECT, INSERT, UPDATE, DELETE', ARRAY[
        'hourly_model_usage', 'daily_model_usage', 'monthly_model_usage', 'hourly_model_latency', 'usage_hours',
        'usage_hour_attempts', 'usage_days', 'usage_months', 'usage_watermarks', 'model_statuses',
        'model_probe_results']),
    -- Stale calls are ended here; calls are written by the gateway, and deleted by maintenance.
    ('domain_usage', 'SELECT, UPDATE', ARRAY['model_calls']),
    ('domain_hypervisor', 'SELECT, INSERT, UPDATE, DELETE', ARRAY[
        'hypervisor_hosts', 'machines', 'gpus', 'gpu_assignments', 'network_filters', 'network_filter_rules',
        'network_filter_references', 'network_filter_departments', 'network_filter_machines',
        'network_filter_orphans']),
    ('domain_services', 'SELECT, INSERT, UPDATE, DELETE', ARRAY['service_states', 'service_events']),
    ('domain_analysis', 'SELECT, INSERT, UPDATE, DELETE', ARRAY[
        'analysis_tasks', 'analysis_results', 'task_events', 'analyzer_services', 'analysis_workers',
        'generated_applications', 'pipelines', 'pipeline_steps', 'pipeline_jobs', 'pipeline_events']),
    ('domain_maintenance', 'SELECT, INSERT, UPDATE, DELETE', ARRAY[
        'application_roots', 'maintenance_passes', 'archives', 'model_calls', 'analysis_tasks', 'analysis_results',
        'task_events', 'generated_applications', 'pipelines', 'pipeline_steps', 'pipeline_jobs', 'pipeline_events']),
    -- Raw calls go only when the roll-ups are true.
    ('domain_maintenance', 'SELECT', ARRAY[
        'hourly_model_usage', 'daily_model_usage', 'monthly_model_usage', 'usage_hours', 'usage_days', 'usage_months',
        'usage_watermarks', 'analyzer_services', 'analysis_workers']),
    ('domain_operations', 'SELECT, INSERT, UPDATE, DELETE', ARRAY[
        'job_outcomes', 'alerts', 'alert_messages', 'leases']),
    ('domain_operations', 'SELECT', ARRAY['ops_pipeline_schema_version']),
    -- The other programs of the platform.
    ('gateway', 'INSERT, UPDATE', ARRAY['model_calls']),
    ('platform', 'SELECT, INSERT, UPDATE, DELETE', ARRAY[
        'hypervisor_hosts', 'machines', 'gpu_assignments', 'network_filters', 'network_filter_rules',
        'network_filter_references', 'network_filter_departments', 'network_filter_machines']),
    ('platform', 'SELECT', ARRAY['gpus', 'model_statuses', 'service_states']),
    ('lab', 'SELECT, INSERT, UPDATE', ARRAY[
        'analysis_tasks', 'analysis_results', 'task_events', 'analyzer_services', 'analysis_workers',
        'generated_applications', 'pipelines', 'pipeline_steps', 'pipeline_jobs', 'pipeline_events']),
    ('lab', 'DELETE', ARRAY['analysis_workers']),
    ('reader', 'SELECT', ARRAY[
        'hourly_model_usage', 'daily_model_usage', 'monthly_model_usage', 'hourly_model_latency', 'usage_hours',
        'usage_days', 'usage_months', 'model_statuses', 'service_states', 'service_events', 'job_outcomes']);

SELECT format('REVOKE ALL ON ALL TABLES IN SCHEMA public FROM %I', :'prefix' || '_' || role)
FROM (SELECT DISTINCT role FROM granted) AS one
\gexec
SELECT format('GRANT %s ON TABLE public.%I TO %I', privileges, name, :'prefix' || '_' || role)
FROM granted, unnest(tables) AS name
WHERE to_regclass(format('public.%I', name)) IS NOT NULL
\gexec
-- A gateway ends the calls that it began, and reads nothing else of them.
SELECT format('GRANT SELECT (id, status) ON TABLE public.model_calls TO %I', :'gateway')
WHERE to_regclass('public.model_calls') IS NOT NULL
\gexec
-- The jobs never say that the schema has changed.
SELECT format('REVOKE INSERT, UPDATE, DELETE ON TABLE public.ops_pipeline_schema_version FROM %I', :'jobs')
WHERE to_regclass('public.ops_pipeline_schema_version') IS NOT NULL
\gexec

COMMIT;
