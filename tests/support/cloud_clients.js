// Calls Cloud Tasks with Google's client for Node.js, for tests/support/cloud_clients.py.
//
// Each line of standard input is {"method": "createTask", "type": "CreateTaskRequest", "request": {…}}, with the request
// in proto3 JSON. Each line of standard output is {"response": {…}} or {"error": {"code": 5, "message": "…"}}.
'use strict';

const path = require('path');
const readline = require('readline');

const [address, transport, modules] = process.argv.slice(2);
const load = name => require(path.join(modules, name));
const {CloudTasksClient} = load('@google-cloud/tasks');
const {grpc, protobuf} = load('google-gax');
const {OAuth2Client} = load('google-auth-library');
const {fromProto3JSON, toProto3JSON} = load('proto3-json-serializer');

const root = protobuf.Root.fromJSON(load('@google-cloud/tasks/build/protos/protos.json'));
const [apiEndpoint, port] = address.split(':');
const options = {apiEndpoint, port: Number(port)};
if (transport === 'rest') {
  const anonymous = new OAuth2Client();
  anonymous.credentials = {access_token: 'none'};
  Object.assign(options, {fallback: true, protocol: 'http', authClient: anonymous});
} else {
  options.sslCreds = grpc.credentials.createInsecure();
}
const client = new CloudTasksClient(options);
const RESPONSES = {
  createQueue: 'Queue', getQueue: 'Queue', updateQueue: 'Queue', pauseQueue: 'Queue', resumeQueue: 'Queue',
  purgeQueue: 'Queue', listQueues: 'ListQueuesResponse', createTask: 'Task', getTask: 'Task', runTask: 'Task',
  listTasks: 'ListTasksResponse',
};
function typeOf(name) {
  return root.lookupType(`google.cloud.tasks.v2.${name}`);
}

function described(error) {
  // gRPC puts the code before the message, REST has it alone.
  return {code: error.code, message: transport === 'rest' ? error.message : error.details};
}

async function answer(line) {
  const {method, type, request} = JSON.parse(line);
  try {
    const message = typeOf(type).toObject(fromProto3JSON(typeOf(type), request));
    if (message.updateMask) {
      // The serializer leaves them as JSON has them.
      message.updateMask.paths = message.updateMask.paths.map(one => one.replace(/[A-Z]/g, c => `_${c.toLowerCase()}`));
    }
    const [first, , raw] = await client[method](message, {autoPaginate: false});
    const response = method.startsWith('list') ? raw : first;
    if (!(method in RESPONSES)) return {response: {}};
    return {response: toProto3JSON(typeOf(RESPONSES[method]).fromObject(response))};
  } catch (error) {
    if (error.code === undefined) throw error;
    return {error: described(error)};
  }
}

(async () => {
  for await (const line of readline.createInterface({input: process.stdin})) {
    process.stdout.write(JSON.stringify(await answer(line)) + '\n');
  }
  process.exit(0);
})();
