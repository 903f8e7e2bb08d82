# The Terraform examples: formatted, parsed, judged by checkov; the receiver's module, which needs no provider, runs.
need_python python python-hcl2
need_alone checkov checkov
command -v terraform >/dev/null || { echo "terraform is missing: no Debian package brings it" >&2; exit 1; }
export CHECKPOINT_DISABLE=1 TF_IN_AUTOMATION=1

examples=$deploy/terraform
check "terraform fmt finds nothing to change" terraform fmt -check -recursive "$examples"
mkdir "$scratch/unformatted"
sed 's/^  name /  name      /' "$examples/aws/main.tf" >"$scratch/unformatted/main.tf"
refuses "what is not formatted is refused" "main.tf" terraform fmt -check "$scratch/unformatted"

parses() {
    local file
    for file in "$@"; do
        python -c 'import hcl2, sys; assert hcl2.load(open(sys.argv[1]))' "$file" || { echo "$file does not parse"; return 1; }
    done
}
check "every file parses" parses "$examples"/*/*.tf
sed 's/^resource "aws_eip" "source" {/resource "aws_eip" "source"/' "$examples/aws/main.tf" >"$scratch/broken.tf"
refuses "a file that does not parse is refused" "broken.tf does not parse" parses "$scratch/broken.tf"

# Left out, with reasons: CKV_AWS_189, a key of one's own for the disk (the operator's choice); CKV2_AWS_41, a role (the
# host calls nothing of AWS); CKV2_AWS_19, Elastic IPs on an instance (these are on its interface).
judged() {
    "$tools/venv-checkov/bin/checkov" --skip-download --quiet --compact --framework terraform \
        --skip-check CKV_AWS_189,CKV2_AWS_41,CKV2_AWS_19 -d "$1"
}
check "checkov has no objection to the AWS example" judged "$examples/aws"
mkdir "$scratch/open"
sed 's/http_tokens .*/http_tokens = "optional"/' "$examples/aws/main.tf" >"$scratch/open/main.tf"
refuses "a metadata service that answers without a token is objected to" "CKV_AWS_79" judged "$scratch/open"

# The pairs that the outputs promise: one address more than sources, and the first is nobody's source.
pairs_line_up() {
    grep -qF 'range(var.sources + 1)' "$examples/aws/main.tf"
    grep -qF 'private_ip_list[count.index + 1]' "$examples/aws/main.tf"
    grep -qF 'private_ip_list[number + 1]' "$examples/aws/outputs.tf"
    [ "$(grep -c 'prevent_destroy = true' "$examples/aws/main.tf")" -eq 2 ]
}
check "sources are every private address but the first; published ones and the store are never destroyed" pairs_line_up
