#!/usr/bin/env bash
# Sets up an Auth0 tenant for the Timesheets API and writes api.env and sync.env into the current folder.
#
#   auth0 login                        once: the Auth0 CLI, https://github.com/auth0/auth0-cli
#   bash docs/setup.sh https://api.exampleco.com '*@contractor.example'
#
# The first argument is where people and programs will call the API. The second says whom the cron job may upload for:
# addresses, or *@DOMAIN, with commas between. What is there already is brought up to date, so the script can run again.
# docs/auth0.md explains every step. Secrets go from the CLI into the files, and never to the screen or a command line.
set -euo pipefail
umask 077

url=${1:?"usage: bash docs/setup.sh https://api.exampleco.com '*@contractor.example'"}
people=${2:?"usage: bash docs/setup.sh https://api.exampleco.com '*@contractor.example'"}
url=${url%/}
audience=$url/timesheets email_claim=$url/email people_claim=$url/people
scopes=batch:upload,create:timesheets,read:timesheets,delete:timesheets,approve:timesheets,report:timesheets

for file in api.env sync.env; do
    [ ! -e "$file" ] || { echo "$file is there already; move it away, so that no secret is lost." >&2; exit 1; }
done

auth0() { command auth0 --no-input --no-color "$@"; }
# JSON on standard input; `it` is what Python calls it. Prints what the expression gives, or nothing for None.
json() { python3 -c 'import json, sys; it = json.load(sys.stdin) or []; found = eval(sys.argv[1])
print("" if found is None else found if type(found) is str else json.dumps(found))' "$1"; }
id_by_name() { json "next((each['$2'] for each in it if each['name'] == '$1'), None)"; }

domain=$(auth0 tenants list --json | json "next(each['name'] for each in it if each['active'])")
echo "Tenant $domain"

echo "1. Sign-ups are closed"
connection=$(auth0 api get connections -q name=Username-Password-Authentication | json "it[0]['id']")
auth0 api get "connections/$connection" | json "{'options': {**it['options'], 'disable_signup': True}}" |
    auth0 api patch "connections/$connection" >/dev/null

echo "2. The API $audience, with roles (RBAC) enforced"
api=(--name "Timesheets API" --scopes "$scopes" --token-lifetime 86400 --offline-access=false --signing-alg RS256
    --enforce-policies --token-dialect access_token_authz --json)
if api_id=$(auth0 apis show "$audience" --json 2>/dev/null | json "it['id']" 2>/dev/null); then
    auth0 apis update "$api_id" "${api[@]}" >/dev/null
else
    api_id=$(auth0 apis create --identifier "$audience" "${api[@]}" | json "it['id']")
fi

application() {  # name, options: make it, or bring it up to date; prints its client id
    local id
    id=$(auth0 apps list --json | id_by_name "$1" client_id)
    if [ -n "$id" ]; then
        auth0 apps update "$id" "${@:2}" --json >/dev/null
    else
        id=$(auth0 apps create --name "$1" "${@:2}" --json | json "it['client_id']")
    fi
    echo "$id"
}

echo "3. The machine application of the cron job, with batch:upload and nothing else"
job=$(application "Timesheets Import Job" --type m2m --auth-method Post --metadata "people=$people")
if [ "$(auth0 api get client-grants -q "client_id=$job" -q "audience=$audience" | json "len(it)")" = 0 ]; then
    auth0 client-grants create --client-id "$job" --audience "$audience" --scopes batch:upload --json >/dev/null
fi

echo "4. The page for people, $url/app"
app=$(application "Timesheets" --type spa --callbacks "$url/app" --logout-urls "$url/app" --web-origins "$url")

action() {  # name, trigger, code: write it, deploy it, and bind it behind the Actions that are bound already
    local id tries=0
    id=$(auth0 actions list --json | id_by_name "$1" id)
    if [ -n "$id" ]; then
        auth0 actions update "$id" --code "$3" --force --json >/dev/null
    else
        id=$(auth0 actions create --name "$1" --trigger "$2" --code "$3" --runtime node22 --json | json "it['id']")
    fi
    until [ "$(auth0 api get "actions/actions/$id" | json "it['status']")" = built ]; do
        [ $((tries += 1)) -lt 30 ] || { echo "Auth0 is still building the Action $1. Run this again." >&2; exit 1; }
        sleep 1
    done
    auth0 actions deploy "$id" --json >/dev/null
    auth0 api get "actions/triggers/$2/bindings" | json "{'bindings': [
        {'ref': {'type': 'binding_id', 'value': each['id']}, 'display_name': each['display_name']}
        for each in it['bindings'] if each['action']['id'] != '$id'
    ] + [{'ref': {'type': 'action_id', 'value': '$id'}, 'display_name': '$1'}]}" |
        auth0 api patch "actions/triggers/$2/bindings" >/dev/null
}

echo "5. The Action that puts a person's verified e-mail into the token"
action "Timesheets email" post-login "exports.onExecutePostLogin = async (event, api) => {
  if (event.user.email_verified) api.accessToken.setCustomClaim('$email_claim', event.user.email);
};"

echo "6. The Action that puts into a program's token whom it may upload for"
action "Timesheets people" credentials-exchange "exports.onExecuteCredentialsExchange = async (event, api) => {
  api.accessToken.setCustomClaim('$people_claim', event.client.metadata.people || '');
};"

role() {  # name, description, permissions
    local id
    id=$(auth0 roles list --json | id_by_name "$1" id)
    [ -n "$id" ] || id=$(auth0 roles create --name "$1" --description "$2" --json | json "it['id']")
    auth0 roles permissions add "$id" --api-id "$api_id" --permissions "$3" >/dev/null
}

echo "7. The roles contractor, manager and payroll"
role contractor "Adds and sees own hours" create:timesheets,read:timesheets,delete:timesheets
role manager "Approves hours" create:timesheets,read:timesheets,delete:timesheets,approve:timesheets
role payroll "Sees everybody's hours" report:timesheets

cat >api.env <<END
AUTH0_DOMAIN=$domain
AUTH0_AUDIENCE=$audience
USER_CLAIM=$email_claim
PEOPLE_CLAIM=$people_claim
APP_CLIENT_ID=$app
PUBLIC_URL=$url
DATABASE_URL=/var/lib/timesheets/timesheets.db
END
secret=$(auth0 apps show "$job" --reveal-secrets --json | json "it['client_secret']")
cat >sync.env <<END
AUTH0_DOMAIN=$domain
AUTH0_AUDIENCE=$audience
AUTH0_CLIENT_ID=$job
AUTH0_CLIENT_SECRET=$secret
TIMESHEETS_URL=$url
END
echo "api.env and sync.env are written. Left to do: create people and give each a role (docs/auth0.md, step 7)."
