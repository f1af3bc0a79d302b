"""From an open model to a running application: spec, stages, executor, report. The only room that joins the others."""
