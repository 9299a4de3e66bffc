// Container Instances whose number is kept: an NGroups resource makes `workers` groups of one profile,
// replaces those that end, and is scaled by its `desiredCount`.
//
// There is no autoscaler here either; whoever has one (a Logic App, a pipeline) sets `desiredCount` to what
// the dashboard's /scaling tells. A group that is taken away is chosen at random, which a worker bears.
param location string
param prefix string
param image string
param registryServer string
param settings array
param workerIdentityId string
param workers int
param workspaceName string
param subnetId string

resource workspace 'Microsoft.OperationalInsights/workspaces@2025-07-01' existing = {
  name: workspaceName
}

resource profile 'Microsoft.ContainerInstance/containerGroupProfiles@2025-09-01' = {
  name: '${prefix}-worker'
  location: location
  properties: {
    osType: 'Linux'
    sku: 'Standard'
    // A worker that ends by itself could not go on: unreachable services, or rights that are gone.
    restartPolicy: 'Always'
    imageRegistryCredentials: [
      {
        server: registryServer
        identity: workerIdentityId
      }
    ]
    containers: [
      {
        name: 'worker'
        properties: {
          image: image
          command: [
            '/usr/bin/promptmill'
            'work'
          ]
          environmentVariables: settings
          resources: {
            requests: {
              cpu: 1
              memoryInGB: json('1')
            }
          }
          securityContext: {
            allowPrivilegeEscalation: false
            privileged: false
            runAsUser: 65532
            runAsGroup: 65532
            capabilities: {
              drop: [
                'ALL'
              ]
            }
          }
        }
      }
    ]
    diagnostics: {
      logAnalytics: {
        workspaceId: workspace.properties.customerId
        // The service writes the logs with it; no container sees it.
        workspaceKey: workspace.listKeys().primarySharedKey
        logType: 'ContainerInstanceLogs'
      }
    }
  }
}

resource groups 'Microsoft.ContainerInstance/NGroups@2025-09-01' = {
  name: '${prefix}-workers'
  location: location
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${workerIdentityId}': {}
    }
  }
  properties: {
    elasticProfile: {
      desiredCount: workers
      maintainDesiredCount: true
    }
    containerGroupProfiles: [
      {
        resource: {
          id: profile.id
        }
        containerGroupProperties: empty(subnetId) ? null : {
          subnetIds: [
            {
              id: subnetId
            }
          ]
        }
      }
    ]
    updateProfile: {
      updateMode: 'Rolling'
    }
  }
}

output groupsName string = groups.name
