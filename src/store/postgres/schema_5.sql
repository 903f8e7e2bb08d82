-- Version 5. The oldest send that is left of an execution whose first one is gone with its day: by it the execution
-- stands in the list.
ALTER TABLE execution ADD COLUMN oldest uuid;
CREATE INDEX execution_oldest ON execution (oldest) WHERE oldest IS NOT NULL;
