"""Pictures and pages: a job, a report, and a server of both. Server-rendered templates, without a build step."""
